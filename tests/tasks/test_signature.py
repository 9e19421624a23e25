"""Signatures: strict JSON, and each call against a plain computation."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tasks.fakes import module_base, text_base
from torch import Tensor, nn

from graftwork._errors import DeltaError, InputError, UnknownNameError, UnsupportedError
from graftwork.tasks import CALLS, FEATURES, POOLINGS, SEQUENCES, ArrayInput, Signature

TEXT: dict[str, Any] = {"kind": "classification", "labels": ("no", "yes")}


def single(**changes: Any) -> Signature:
    return Signature(**{**TEXT, "call": "single", "fields": ("text",), **changes})


def two(**changes: Any) -> Signature:
    return Signature(**{**TEXT, "call": "two_encodings", "fields": ("one", "two"), **changes})


def values(**changes: Any) -> Signature:
    return single(**{"kind": "regression", "labels": (), **changes})


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="{}!:[]."), min_size=1, max_size=5)


ARRAY = ArrayInput((3, 4), scale=0.5, mean=(0.25,), std=(1.0, 2.0, 3.0))


@st.composite
def fields_of_signatures(draw: st.DrawFn) -> dict[str, Any]:
    call = draw(st.sampled_from(sorted(set(CALLS) - set(SEQUENCES.values()))))
    count = {"single": 1, "array": 1, "embedded": 1}.get(call, 2)
    fields = tuple(draw(st.lists(NAMES, min_size=count, max_size=count, unique=True)))
    kind = draw(st.sampled_from(["classification", "regression", "binary", "multilabel", "vector"]))
    labels = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    answers = tuple(labels[:2]) if draw(st.booleans()) else ()
    most = {"classification": 1, "multilabel": 1, "vector": 0}.get(kind, 3)
    targets = draw(st.lists(NAMES, min_size=min(most, 1), max_size=most, unique=True))
    spread = len(targets) if kind == "regression" else 0
    template = tuple(f"{{{name}}} ." for name in fields) if draw(st.booleans()) else ()
    return dict(  # noqa: C408
        kind=kind,
        call=call,
        fields=fields,
        targets=tuple(targets),
        labels={
            "classification": tuple(labels),
            "multilabel": tuple(labels),
            "binary": answers,
        }.get(kind, ()),
        template=template if CALLS[call].texts else (),
        max_length=draw(st.none() | st.integers(1, 512)),
        pooling=draw(st.sampled_from(sorted(POOLINGS))),
        normalise=draw(st.booleans()),
        features=tuple(draw(st.permutations(FEATURES)))[: draw(st.integers(1, 4))],
        array=None if CALLS[call].texts else ARRAY,
        input="pixels" if call == "embedded" else None,
        head="head" if call == "two_encodings" else draw(st.sampled_from(["head", None])),
        target_mean=tuple(draw(st.floats(-1e6, 1e6)) for _ in range(spread)),
        target_std=tuple(draw(st.floats(1e-6, 1e6)) for _ in range(spread)),
    )


@given(fields_of_signatures())
def test_json_round_trip_keeps_everything(fields: dict[str, Any]) -> None:
    signature = Signature(**fields)
    text = json.dumps(signature.to_json())
    assert Signature.from_json(json.loads(text)) == signature
    assert Signature.from_json(signature.to_json()) == signature


def test_each_missing_key_is_named() -> None:
    data = single().to_json()
    for key in set(data) - {"version"}:
        with pytest.raises(DeltaError, match=f"'{key}' is missing"):
            Signature.from_json({k: v for k, v in data.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", 1),
        ("fields", "text"),
        ("fields", [1]),
        ("labels", None),
        ("max_length", 1.5),
        ("max_length", True),
        ("max_length", 10**40),
        ("normalise", 1),
        ("array", [1]),
        ("head", 0),
        ("targets", "label"),
        ("target_mean", 0.0),
        ("target_mean", ["0"]),
        ("target_std", [float("nan")]),
        ("target_std", [10**400]),
        ("input", 1),
    ],
)
def test_each_ill_typed_key_is_named(key: str, value: Any) -> None:
    with pytest.raises(DeltaError, match=f"'{key}' must be"):
        Signature.from_json({**single().to_json(), key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lables": []}, "unknown key 'lables'; did you mean 'labels'"),
        ({"version": 3}, "version 3 is not one of 1 to 2"),
        ({"version": [2]}, r"version \[2\] is not"),
        ({"version": True}, "unknown key 'targets'; did you mean 'target'"),
        ({"call": "singel"}, "unknown call 'singel'; did you mean 'single'"),
        ({"pooling": "average"}, "unknown pooling"),
        ({"labels": ["a", "a"]}, "2 or more different"),
        ({"labels": ["a"]}, "2 or more different"),
        ({"fields": ["a", "b"]}, r"reads 1 text\(s\), but 2"),
        ({"template": ["{text.__class__}"]}, "not the columns"),
        ({"template": ["{text!r}"]}, "only '{column}'"),
        ({"template": ["{text"]}, "write '{column}'"),
        ({"template": ["no column"]}, "names no column"),
        ({"max_length": 0}, "must be 1 or more"),
        ({"target_std": [1.0]}, r"must have 0 number\(s\)"),
        ({"targets": []}, "classification has 1 target"),
        ({"targets": ["a", "b"]}, "classification has 1 target"),
        ({"input": "pixels"}, "goes with the call 'embedded'"),
        ({"array": {"shape": [2]}}, "the key 'dtype' is missing"),
        ({"array": {"shap": 1}}, "unknown key 'shap'; did you mean 'shape'"),
    ],
)
def test_values_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DeltaError, match=message):
        Signature.from_json({**single().to_json(), **change})


GOLDEN = Path(__file__).parents[1] / "golden"
OF_VERSION_1: dict[str, Signature] = {
    "single": single(labels=("neg", "pos"), max_length=128),
    "pair": Signature(
        kind="classification",
        call="pair",
        fields=("a", "b"),
        targets=("stars",),
        labels=("1", "2", "3"),
        pooling="cls",
        normalise=True,
    ),
    "two_encodings": Signature(
        kind="regression",
        call="two_encodings",
        fields=("a", "b", "c"),
        targets=("score",),
        template=("{a} {b}", "{c}"),
        features=("|u-v|", "u*v"),
        target_mean=(2.5,),
        target_std=(1.25,),
    ),
    "array": single(
        call="array",
        fields=("image",),
        labels=("no", "peut-être \u2713"),
        array=ArrayInput((3, 4, 5), "float32", 1 / 255, (0.5, 0.25, 0.125), (0.5,), "RGB"),
        pooling="none",
        head=None,
    ),
    "ids": values(
        call="array",
        fields=("x",),
        array=ArrayInput((7,), "int64"),
        target_mean=(-1.0,),
        target_std=(0.5,),
    ),
}
OF_VERSION_2: dict[str, Signature] = {
    **OF_VERSION_1,
    "several": values(
        fields=("smiles",),
        targets=("homo", "lumo"),
        target_mean=(-0.25, 0.125),
        target_std=(0.5, 2.0),
    ),
    "answers": values(kind="binary", targets=("toxic", "active"), labels=("CI", "CA")),
    "embedded": single(call="embedded", fields=("x",), array=ArrayInput((8, 3)), input="pixels"),
    "columns": single(
        call="embedded",
        fields=("age", "colour"),
        array=ArrayInput((2,), mean=(40.0, 0.0), std=(9.5, 1.0), categories=((), ("blue", "red"))),
        input="input",
    ),
    "policy": values(
        kind="vector", call="array", fields=("seen",), targets=(), array=ArrayInput((5,)), head=None
    ),
}


@pytest.mark.parametrize(("version", "known"), [(1, OF_VERSION_1), (2, OF_VERSION_2)])
def test_golden_signatures_of_every_version_are_read(
    version: int, known: dict[str, Signature]
) -> None:
    written = json.loads((GOLDEN / f"signatures_v{version}.json").read_text(encoding="utf-8"))
    assert {name: Signature.from_json(data) for name, data in written.items()} == known
    assert all(data["version"] == version for data in written.values())


def test_this_version_writes_the_golden_signatures() -> None:
    written = json.loads((GOLDEN / "signatures_v2.json").read_text(encoding="utf-8"))
    assert {name: signature.to_json() for name, signature in OF_VERSION_2.items()} == written


def test_version_1_has_no_newer_kinds() -> None:
    data = json.loads((GOLDEN / "signatures_v1.json").read_text(encoding="utf-8"))["single"]
    with pytest.raises(DeltaError, match="version 1 has no kind 'binary'"):
        Signature.from_json({**data, "kind": "binary"})
    with pytest.raises(DeltaError, match="the key 'target' is missing"):
        Signature.from_json({k: v for k, v in data.items() if k != "target"})


def test_an_empty_signature_is_a_bare_weight_difference() -> None:
    with pytest.raises(DeltaError, match="bare weight difference"):
        Signature.from_json({})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: two(features=("u", "w")), "unknown feature 'w'"),
        (lambda: two(features=()), "one or more"),
        (lambda: two(features=("u", "u")), "each once"),
        (lambda: two(head=None), "needs a head"),
        (lambda: single(array=ArrayInput((2,))), "goes with the calls 'array'"),
        (lambda: single(call="array"), "goes with the calls 'array'"),
        (lambda: single(call="embedded", array=ArrayInput((2,))), "`input` None goes with"),
        (lambda: single(kind="regression"), "regression has no labels"),
        (lambda: values(targets=("a", "a")), "different targets"),
        (lambda: values(targets=("a", "b"), target_std=(1.0,)), r"must have 2 number\(s\)"),
        (lambda: values(target_std=(0.0,)), "must be finite"),
        (lambda: values(kind="vector"), r"vector has 0 target\(s\)"),
        (lambda: values(kind="vector", targets=(), labels=("a", "b")), "vector has no labels"),
        (lambda: values(kind="binary", labels=("no",)), "the words for no and yes"),
        (lambda: values(kind="multilabel", labels=()), "1 or more different names"),
        (lambda: values(kind="multilabel", labels=("a", "a")), "1 or more different names"),
        (lambda: values(kind="multilabel", targets=("a", "b"), labels=("c",)), "has 1 target"),
        (lambda: values(kind="binary", target_mean=(0.0,)), "one for each target of a regression"),
        (lambda: ArrayInput((3, 4), mean=(0.0, 0.0)), "mean has 2 values"),
        (lambda: ArrayInput((3, 4), std=(0.0,)), "must be positive"),
        (lambda: ArrayInput((3,), picture="RGB"), r"\(channels, height, width\)"),
    ],
)
def test_fields_that_do_not_go_together_are_errors(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.usefixtures("untyped")
def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(InputError, match="unknown kind 'ranking'"):
        values(kind="ranking")


def hidden(texts: list[str], second: list[str] | None = None) -> list[Tensor]:
    """The oracle: each text alone, without padding."""
    base = text_base()
    out = []
    for row, text in enumerate(texts):
        pair = None if second is None else second[row]
        encoding = base.tokenizer(text, pair, return_tensors="pt")
        out.append(base.model(**encoding).last_hidden_state[0])
    return out


NAIVE = {
    "mean": lambda h: h.mean(0),
    "max": lambda h: h.amax(0),
    "cls": lambda h: h[0],
    "last": lambda h: h[-1],
}
TEXTS = ["good film", "a b c d film is not bad", "film", ""]


@pytest.mark.parametrize("pooling", sorted(NAIVE))
def test_single_equals_each_text_alone_whatever_the_padding(pooling: str) -> None:
    signature = single(pooling=pooling)
    inputs = signature.encode(text_base(), [{"text": text} for text in TEXTS])
    assert inputs["input_ids"].shape == (4, 10)
    got = signature.features_of(text_base().model, {}, inputs)
    want = torch.stack([NAIVE[pooling](h) for h in hidden(TEXTS)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_pair_uses_the_tokenizers_pair_encoding() -> None:
    signature = Signature(**TEXT, call="pair", fields=("one", "two"))
    ones, twos = ["good film", "bad"], ["a b", "film is bad"]
    records = [{"one": a, "two": b} for a, b in zip(ones, twos, strict=True)]
    inputs = signature.encode(text_base(), records)
    assert inputs["token_type_ids"][1].tolist() == [0, 0, 0, 1, 1, 1, 1]
    got = signature.features_of(text_base().model, {}, inputs)
    want = torch.stack([h.mean(0) for h in hidden(ones, twos)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("features", [FEATURES, ("|u-v|",), ("u*v", "u"), ("v",)])
@pytest.mark.parametrize("normalise", [False, True])
def test_two_encodings_equal_two_forwards(features: tuple[str, ...], normalise: bool) -> None:
    signature = two(features=features, normalise=normalise)
    ones, twos = ["good film", "bad"], ["a b", "film is a bad film"]
    records = [{"one": a, "two": b} for a, b in zip(ones, twos, strict=True)]
    inputs = signature.encode(text_base(), records)
    assert inputs["input_ids"].shape == (2, 2, 7)
    got = signature.features_of(text_base().model, {}, inputs)
    u, v = (torch.stack([h.mean(0) for h in hidden(texts)]) for texts in (ones, twos))
    if normalise:
        u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    parts = {"u": u, "v": v, "|u-v|": (u - v).abs(), "u*v": u * v}
    want = torch.cat([parts[name] for name in features], 1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_two_encodings_run_one_forward() -> None:
    class Counter(nn.Module):
        calls = 0

        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Any:
            self.calls += 1
            return nn.functional.one_hot(input_ids, 13).float()

    model = Counter()
    inputs = two().encode(text_base(), [{"one": "a", "two": "b c"}] * 3)
    assert two().features_of(model, {}, inputs).shape == (3, 4 * 13)
    assert model.calls == 1


def test_templates_join_columns_in_order() -> None:
    signature = single(fields=("title", "body"), template=("{body} is {title}",))
    inputs = signature.encode(text_base(), [{"title": "good", "body": "film"}])
    words = text_base().tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert words == ["[CLS]", "film", "is", "good", "[SEP]"]


def test_max_length_cuts() -> None:
    inputs = single(max_length=4).encode(text_base(), [{"text": "a b c d"}])
    assert inputs["input_ids"].shape == (1, 4)


def test_causal_padding_and_left_padding_are_masked() -> None:
    pool_last, pool_first = POOLINGS["last"], POOLINGS["cls"]
    assert pool_last is not None
    assert pool_first is not None
    values = torch.arange(6.0).reshape(2, 3, 1)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert pool_last(values, mask).flatten().tolist() == [1.0, 5.0]
    assert pool_first(values, mask).flatten().tolist() == [0.0, 4.0]


def test_max_pooling_ignores_padding_below_zero() -> None:
    pool_max = POOLINGS["max"]
    assert pool_max is not None
    values = torch.tensor([[[-3.0], [-1.0], [0.0]]])
    assert pool_max(values, torch.tensor([[True, True, False]])).item() == -1.0


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]


def test_arrays_are_scaled_and_feature_maps_pooled() -> None:
    form = ArrayInput((3, 2, 2), scale=2.0, mean=(1.0, 0.0, 0.0), std=(1.0, 2.0, 1.0))
    signature = single(call="array", fields=("x",), array=form)
    x = torch.arange(12.0).reshape(3, 2, 2)
    inputs = signature.encode(module_base(Maps()), [{"x": x.tolist()}])
    assert inputs["x"].dtype == torch.float32
    want = torch.stack([2 * x[0] - 1, x[1], 2 * x[2]])
    torch.testing.assert_close(inputs["x"][0], want)
    features = signature.features_of(Maps(), {}, inputs)
    torch.testing.assert_close(features, want[:2].mean((1, 2))[None])


class Embedder(nn.Module):
    """`(B, L, 3)` to `(B, L, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize("pooling", sorted(NAIVE))
def test_embedded_gives_the_port_in_place_of_token_embeddings(pooling: str) -> None:
    form = ArrayInput((5, 3))
    signature = single(
        call="embedded", fields=("x",), array=form, input="pixels", head=None, pooling=pooling
    )
    base, embedder = text_base(), Embedder()
    x = torch.randn(2, 5, 3)
    inputs = signature.encode(base, [{"x": row} for row in x])
    ports = nn.ModuleDict({"pixels": embedder})
    headed = dataclasses.replace(signature, head="head")
    got = headed.features_of(base.model, ports, inputs)
    # The oracle: each row alone, by the inner parts of BERT that come after the word embeddings.
    parts = base.model.embeddings
    rows = []
    for row in x:
        added = embedder(row).double() + parts.position_embeddings.weight[:5]
        hidden = parts.LayerNorm(added + parts.token_type_embeddings.weight[0])[None]
        for layer in base.model.encoder.layer:
            out = layer(hidden)
            hidden = out if isinstance(out, Tensor) else out[0]
        rows.append(NAIVE[pooling](hidden[0]))
    torch.testing.assert_close(got, torch.stack(rows), rtol=0, atol=1e-10)


def test_embedded_names_what_is_wrong() -> None:
    fields: dict[str, Any] = {"call": "embedded", "fields": ("x",), "array": ArrayInput((3,))}
    signature = single(**fields, input="pixels")
    with pytest.raises(DeltaError, match="needs the port 'pixels'; did you mean 'pixel'"):
        signature.features_of(nn.Identity(), {"pixel": nn.Identity()}, {"x": torch.zeros(2, 3)})
    with pytest.raises(UnsupportedError, match=r"the port 'pixels' gave \(2, 3\)"):
        signature.features_of(nn.Identity(), {"pixels": nn.Identity()}, {"x": torch.zeros(2, 3)})


def test_outputs_come_from_head_or_module() -> None:
    signature = single(call="array", fields=("x",), array=ArrayInput((3,)), pooling="none")
    x = torch.randn(2, 3)
    head = nn.Linear(3, 2)
    ports = nn.ModuleDict({"head": head})
    got = signature.call_model(nn.Identity(), ports, {"x": x})
    torch.testing.assert_close(got, head(x))
    with pytest.raises(DeltaError, match="needs the port 'head'"):
        signature.call_model(nn.Identity(), {}, {"x": x})
    bare = single(call="array", fields=("x",), array=ArrayInput((3,)), head=None)
    torch.testing.assert_close(bare.call_model(nn.Identity(), {}, {"x": x}), x)


@pytest.mark.parametrize(
    ("output", "pooling", "message"),
    [
        (torch.zeros(2, 3, 4), "none", r"\(2, 3, 4\)"),
        (torch.zeros(2, 3), "mean", r'use pooling "none"'),
        ({"hidden": torch.zeros(2)}, "mean", "none of which is last_hidden_state"),
        ("text", "mean", "returned a str"),
        ((), "mean", "returned a tuple"),
    ],
)
def test_outputs_that_cannot_be_pooled_are_errors(output: Any, pooling: str, message: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return output

    signature = single(call="array", fields=("x",), array=ArrayInput((3,)), pooling=pooling)
    with pytest.raises(UnsupportedError, match=message):
        signature.features_of(Odd(), {}, {"x": torch.zeros(2, 3)})


def test_decode_classification_and_ties() -> None:
    first, second = single().decode(torch.tensor([[0.0, 0.0], [1.0, 3.0]]))
    assert (first.label, second.label) == ("no", "yes")
    assert first.scores == {"no": 0.5, "yes": 0.5}
    assert second.scores is not None
    assert second.scores["yes"] == pytest.approx(1 / (1 + torch.e**-2))
    assert first.value is None


def test_decode_regression_gives_the_datas_units() -> None:
    signature = single(kind="regression", labels=(), target_mean=(10.0,), target_std=(4.0,))
    predictions = signature.decode(torch.tensor([[0.5], [-1.0]]))
    assert [p.value for p in predictions] == [12.0, 6.0]
    assert [p.values for p in predictions] == [{"label": 12.0}, {"label": 6.0}]
    with pytest.raises(DeltaError, match="1 output"):
        signature.decode(torch.zeros(2, 3))


def test_decode_several_targets_answers_and_vectors() -> None:
    several = values(targets=("a", "b"), target_mean=(1.0, -1.0), target_std=(2.0, 0.5))
    (first,) = several.decode(torch.tensor([[0.5, 4.0]]))
    assert (first.value, first.values) == (None, {"a": 2.0, "b": 1.0})
    (second,) = values(kind="binary", targets=("a", "b")).decode(torch.tensor([[0.0, 2.0]]))
    assert second.scores == pytest.approx({"a": 0.5, "b": 1 / (1 + math.exp(-2))})
    assert (second.label, second.values) == (None, None)
    (third,) = values(kind="vector", targets=()).decode(torch.tensor([[0.25, 2.0, -1.0]]))
    assert third.vector == (0.25, 2.0, -1.0)
    with pytest.raises(DeltaError, match="2 output"):
        several.decode(torch.zeros(1, 3))
    with pytest.raises(DeltaError, match="any number of"):
        values(kind="vector", targets=()).decode(torch.zeros(3))


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        ([{"text": "a", "lable": 1}], UnknownNameError, "column in record 1: 'lable'"),
        ([{"txt": "a"}], UnknownNameError, "did you mean 'text'"),
        ([{"text": "a"}, {}], InputError, r"record 2 lacks the column\(s\) \['text'\]"),
        ([{"text": "a"}, {"text": None}], InputError, "row 2: column 'text' is missing"),
        ([{"text": float("nan")}], InputError, "row 1: column 'text' is missing"),
        ([{"text": ["a"]}], InputError, "row 1: column 'text' is a list, not text"),
        ([], InputError, "no rows"),
    ],
)
def test_bad_records_are_named(records: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        single().encode(text_base(), records)


def test_numbers_are_text_where_text_is_wanted() -> None:
    assert single().encode(text_base(), [{"text": 7}])["input_ids"].tolist() == [[2, 1, 3]]


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        single().encode(module_base(nn.Identity()), [{"text": "a"}])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0, 2.0]], r"row 2: column 'x' has shape \(1, 2\), not \(2,\)"),
        (["a", "b"], "row 2: column 'x' is not an array of numbers"),
        ([1.0, float("nan")], r"row 2: column 'x' holds NaN or infinity \(1 rows"),
    ],
)
def test_bad_arrays_are_named(value: Any, message: str) -> None:
    signature = single(call="array", fields=("x",), array=ArrayInput((2,)))
    with pytest.raises(InputError, match=message):
        signature.encode(module_base(nn.Identity()), [{"x": [0.0, 1.0]}, {"x": value}])
