"""From configuration to task: defaults, preprocessing, and every fault of the data."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.fakes import module_base, text_base
from torch import Tensor, nn

from graftwork._errors import ConfigError, InputError, UnknownNameError, UnsupportedError
from graftwork.nn import Head
from graftwork.tasks import Table, TableStream, TaskConfig, _encoded, make_task, task_from_tables


def write(path: Path, rows: list[list[Any]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t").writerows(rows)
    return str(path)


REVIEWS = [
    ["text", "label"],
    *([f"good {i}", "pos"] for i in range(8)),
    *([f"bad {i}", "neg"] for i in range(8)),
]


def reviews(folder: Path) -> str:
    return write(folder / "reviews.csv", REVIEWS)


def stream(task: Any, name: str) -> TableStream:
    found = task.streams[name]
    assert isinstance(found, TableStream)
    return found


def test_comparisons_are_the_default() -> None:
    config = TaskConfig(max_rows=80, eval_rows=16)
    task = make_task(text_base(), config, batch_size=4, seed=3)
    assert list(task.streams) == ["train", "eval", "eval-words", "eval-length"]
    assert [len(stream(task, name)) for name in task.streams] == [80, 16, 16, 16]
    assert task.signature.call == "two_encodings"
    assert task.signature.labels == ("contradiction", "neutral", "entailment")
    assert task.signature.fields == ("premise", "hypothesis")
    assert (task.signature.pooling, task.signature.max_length) == ("mean", 32)
    config_of_head = task.ports["head"].config
    assert config_of_head["in_features"] == 4 * 8
    head = task.build_ports()["head"]
    assert isinstance(head, Head)

    def model(batch: Any) -> Tensor:
        return task.signature.call_model(text_base().model, {"head": head}, batch.inputs)

    metrics = task.evaluate(model)
    assert {"accuracy", "loss", "accuracy/same", "accuracy/unrelated"} <= set(metrics)
    losses = task.objectives["task"](model, task.streams["train"].draw())
    assert losses.shape == (4,)
    with pytest.raises(UnknownNameError, match="unknown stream 'test'"):
        task.evaluate(model, "test")


def test_default_sizes_shrink_to_what_long_phrases_have() -> None:
    task = make_task(text_base(), TaskConfig(phrases="long", max_rows=80))
    assert len(stream(task, "eval-words")) == 640


def test_seed_and_shard_reach_the_stream() -> None:
    config = TaskConfig(max_rows=80, eval_rows=8)
    whole, again = (make_task(text_base(), config, batch_size=6, seed=5) for _ in range(2))
    part = make_task(text_base(), config, batch_size=6, seed=5, rank=1, world=2)
    rows = whole.streams["train"].draw().rows
    assert torch.equal(rows, again.streams["train"].draw().rows)
    assert torch.equal(rows[1::2], part.streams["train"].draw().rows)
    assert whole.digest == again.digest
    assert whole.digest != make_task(text_base(), config, seed=6).digest


def test_one_file_is_split_the_same_for_all_seeds(tmp_path: Path) -> None:
    config = TaskConfig(data=reviews(tmp_path), eval_share=0.25)
    tasks = [make_task(text_base(), config, seed=seed) for seed in (0, 1)]
    texts = [list(stream(task, "eval").table["text"]) for task in tasks]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 4
    train = list(stream(tasks[0], "train").table["text"])
    assert sorted(train + texts[0]) == sorted(row[0] for row in REVIEWS[1:])
    assert tasks[0].signature.call == "single"
    assert tasks[0].signature.labels == ("neg", "pos")


def test_files_columns_and_row_limits(tmp_path: Path) -> None:
    rows = [["x", "1", "", f"good {i}"] for i in range(9)] + [["x", "0", "*", "bad"]] * 9
    config = TaskConfig(
        data=write(tmp_path / "train.tsv", rows),
        eval_data=write(tmp_path / "dev.tsv", rows[5:]),
        header=False,
        columns={"sentence": "3", "label": "1"},
        max_rows=12,
        eval_rows=6,
        metrics=("matthews", "accuracy"),
    )
    task = make_task(text_base(), config)
    assert (len(stream(task, "train")), len(stream(task, "eval"))) == (12, 6)
    assert task.signature.fields == ("sentence",)
    assert task.evaluator.main == "matthews"


def test_two_text_columns_and_templates() -> None:
    table = Table({"id": [1, 2], "p": ["a", "b"], "q": ["c", "d"], "label": ["x", "y"]})
    tables = {"train": table}
    two = task_from_tables(text_base(), tables, TaskConfig(inputs=("p", "q")))
    assert two.signature.call == "two_encodings"
    one = task_from_tables(text_base(), tables, TaskConfig(inputs=("p", "q"), call="pair"))
    assert one.ports["head"].config["in_features"] == 8
    joined = task_from_tables(text_base(), tables, TaskConfig(template=("{q} not {p}",)))
    assert joined.signature.fields == ("q", "p")
    assert joined.signature.call == "single"
    with pytest.raises(InputError, match=r"which columns are the input\? \['id', 'p', 'q'\]"):
        task_from_tables(text_base(), tables)


def test_regression_is_standardised_by_the_training_rows() -> None:
    table = Table({"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "10"]}, "s.csv")
    task = task_from_tables(text_base(), {"train": table}, TaskConfig(kind="regression"))
    assert task.signature.target_mean == (4.0,)
    targets = next(stream(task, "train").once(4)).targets
    assert targets is not None
    assert targets.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert targets.std(correction=0).item() == pytest.approx(1.0, abs=1e-6)
    assert task.ports["head"].config["out_features"] == 1
    assert task.evaluator.main == "pearson"


def test_arrays_tables_of_numbers_and_ids() -> None:
    x = np.arange(12, dtype=np.uint8).reshape(4, 3)
    y = ["a", "b", "a", "b"]
    base = module_base(nn.Linear(3, 5))
    task = task_from_tables(base, {"train": Table({"x": x, "label": y})}, TaskConfig(std=(2.0,)))
    assert task.signature.call == "array"
    inputs = next(stream(task, "train").once(4)).inputs
    torch.testing.assert_close(inputs["x"], torch.from_numpy(x) / 2.0)
    assert task.ports["head"].config["in_features"] == 5
    columns = {"p": ["1", "2", "3", "4"], "q": [0.5] * 4, "r": np.arange(4), "label": y}
    wide = task_from_tables(base, {"train": Table(columns)}, TaskConfig(call="array"))
    assert next(stream(wide, "train").once(4)).inputs["x"][1].tolist() == [2.0, 0.5, 1.0]
    ids = task_from_tables(
        module_base(nn.Embedding(16, 4)),
        {"train": Table({"x": x, "label": y})},
        TaskConfig(array_ids=True, pooling="mean"),
    )
    assert next(stream(ids, "train").once(4)).inputs["x"].dtype == torch.int64


def test_without_a_head_the_modules_outputs_are_the_tasks() -> None:
    table = Table({"x": [[0.0], [1.0]], "label": ["a", "b"]})
    task = task_from_tables(module_base(nn.Linear(1, 2)), {"train": table}, TaskConfig(head=False))
    assert dict(task.ports) == {}
    with pytest.raises(InputError, match=r"gives 3 output\(s\) a row, but the task has 2"):
        task_from_tables(module_base(nn.Linear(1, 3)), {"train": table}, TaskConfig(head=False))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_image_folders(tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftwork.tasks._calls.PICTURE_MEMORY", memory)
    for label, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 102))):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.new("RGB", (6 + i, 4), colour).save(tmp_path / label / f"{i}.png")
    config = TaskConfig(data=str(tmp_path), image_size=(2, 2), mean=(0.5,), std=(0.5,))
    task = make_task(module_base(Mean()), config)
    assert task.signature.labels == ("blue", "red")
    batch = next(stream(task, "train").once(1))
    assert batch.inputs["x"].shape == (1, 3, 2, 2)
    want = {0: [-1.0, -1.0, -0.2], 1: [1.0, -1.0, -1.0]}[int(batch.targets)]  # type: ignore[arg-type]
    assert batch.inputs["x"][0, :, 0, 0].tolist() == pytest.approx(want, abs=1e-6)
    name = str(tmp_path / "red" / "0.png")
    by_path = task.signature.encode(module_base(Mean()), [{"image": name}])
    assert by_path["x"][0, :, 1, 1].tolist() == pytest.approx([1.0, -1.0, -1.0])


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    form = _encoded.ArrayInput((1, 2, 2), picture="L")
    with pytest.raises(InputError, match="row 3: not a picture"):
        _encoded.decode_picture(b"no", form, "row 3")
    with pytest.raises(InputError, match="row 4: not a picture"):
        _encoded.decode_picture(str(tmp_path / "none.png"), form, "row 4")


Y = ["a", "b"]


@pytest.mark.parametrize(
    ("tables", "config", "error", "message"),
    [
        ({"eval": {"t": ["x"], "label": ["a"]}}, {}, UnknownNameError, "unknown table 'train'"),
        (
            {"train": {"t": ["x", "y"], "lable": Y}},
            {},
            UnknownNameError,
            "did you mean 'lable'",
        ),
        (
            {"train": {"t": ["x", "y"], "label": Y}},
            {"inputs": ("text",)},
            UnknownNameError,
            "'text'",
        ),
        ({"train": {"t": ["x", "y"], "label": Y}}, {"template": ("{u}",)}, UnknownNameError, "'u'"),
        ({"train": {"t": ["x", "y"], "label": Y}}, {"group": "kind"}, UnknownNameError, "'kind'"),
        ({"train": {"t": ["x", "y"], "label": ["a", "a"]}}, {}, InputError, "one label 'a'"),
        ({"train": {"t": ["x", "y"], "label": ["a", None]}}, {}, InputError, "1 of 2 values"),
        ({"train": {"t": [], "label": []}}, {}, InputError, "no rows"),
        ({"train": {"t": ["x", None], "label": Y}}, {}, InputError, "row 2: column 't' is missing"),
        (
            {"train": {"t": ["x", "y"], "label": Y}, "eval": {"t": ["x"], "label": ["c"]}},
            {},
            UnknownNameError,
            r"label \(the table, row 1, column 'label'\) 'c'",
        ),
        (
            {"train": {"t": ["x", "y"], "label": Y}},
            {"labels": ("a", "c")},
            UnknownNameError,
            "row 2, column 'label'. 'b'",
        ),
        (
            {"train": {"t": ["x", "y"], "label": ["1", "high"]}},
            {"kind": "regression"},
            InputError,
            "row 2: column 'label' has 'high', which is not a number",
        ),
        (
            {"train": {"t": ["x", "y"], "label": ["2", "2.0"]}},
            {"kind": "regression"},
            InputError,
            "all 2 values in column 'label' are 2.0",
        ),
        (
            {"train": {"t": ["x", "y"], "label": [1.0, float("nan")]}},
            {"kind": "regression"},
            InputError,
            "1 of 2 values in column 'label' are missing or NaN",
        ),
        (
            {"train": {"t": ["x", "y"], "label": Y}},
            {"call": "two_encodings"},
            InputError,
            r"reads 2 text\(s\), but 1 are given",
        ),
        (
            {"train": {"t": ["x", "y"], "label": Y}},
            {"metrics": ("pearson",)},
            ConfigError,
            "does not go with classification",
        ),
        (
            {"train": {"t": ["x", "y"], "label": Y}},
            {"pooling": "none"},
            UnsupportedError,
            "none of which is logits",
        ),
    ],
)
def test_faults_of_the_data_are_named(
    tables: dict[str, dict[str, Any]],
    config: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        task_from_tables(
            text_base(), {k: Table(v) for k, v in tables.items()}, TaskConfig(**config)
        )


def test_the_layout_of_a_file_reaches_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("'good'|1\n'bad'|0\n'\"film'|1\n'd'|0\n", encoding="utf-8")
    config = TaskConfig(
        data=str(path),
        format="csv",
        header=False,
        quoting=False,
        delimiter="|",
        columns={"text": "0", "label": "1"},
        eval_data=str(path),
    )
    task = make_task(text_base(), config)
    assert sorted(stream(task, "eval").table["text"]) == ["'\"film'", "'bad'", "'d'", "'good'"]


def test_an_input_the_base_cannot_take_is_named() -> None:
    table = Table({"x": [[0.0, 1.0], [1.0, 0.0]], "label": Y})
    with pytest.raises(UnsupportedError, match=r"cannot be called with \{'x': \(1, 2\)\}"):
        task_from_tables(module_base(nn.Linear(3, 3)), {"train": table})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"eval_share": 0.0}, ConfigError, "eval_share 0.0 must be between 0 and 1"),
        ({"max_rows": 1}, ConfigError, "max_rows 1 must be 2 or more"),
        ({"eval_rows": 0}, ConfigError, "eval_rows 0"),
        ({"max_length": 0}, ConfigError, "max_length 0"),
        ({"head_hidden": -1}, ConfigError, "head_hidden -1"),
        ({"metrics": ("acc",)}, UnknownNameError, "unknown metric 'acc'"),
        ({"pooling": "avg"}, UnknownNameError, "unknown pooling 'avg'"),
        ({"features": ("u", "w")}, UnknownNameError, "unknown feature 'w'"),
    ],
)
def test_bad_configurations_are_named(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TaskConfig(**fields)


@pytest.mark.usefixtures("untyped")
def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown kind 'ranking'"):
        TaskConfig(kind="ranking")  # type: ignore[arg-type]


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        make_task(text_base(), TaskConfig(data=str(tmp_path / "none.csv")))
    with pytest.raises(InputError, match="brings its own splits"):
        make_task(text_base(), TaskConfig(eval_data="dev.csv"))
    path = write(tmp_path / "one.csv", [["text", "label"], ["a", "x"], ["b", "x"]])
    with pytest.raises(InputError, match=r"one.csv: all 2 rows have the one label 'x'"):
        make_task(text_base(), TaskConfig(data=path))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_too_few_rows_beside_those_held_out(tmp_path: Path, kind: Any) -> None:
    path = write(tmp_path / "two.csv", [["text", "label"], ["a", "1"], ["b", "2"]])
    message = (
        r"two.csv has 2 rows; 1 held out to evaluate on \(eval_share 0.1\) leave 1 to learn from, "
        r"all with '1' in column 'label': give more rows, .* \(--eval-data\)"
    )
    with pytest.raises(InputError, match=message):
        make_task(text_base(), TaskConfig(data=path, kind=kind))


def test_pictures_and_arrays_for_a_base_that_reads_text(tmp_path: Path) -> None:
    for label in Y:
        (tmp_path / label).mkdir()
        for i in range(4):
            Image.new("RGB", (4, 4)).save(tmp_path / label / f"{i}.png")
    with pytest.raises(
        UnsupportedError, match=r"^the base reads text, but .* holds pictures; give"
    ):
        make_task(text_base(), TaskConfig(data=str(tmp_path), image_size=(4, 4)))
    table = Table({"x": [[0.0, 1.0], [1.0, 0.0]], "label": Y})
    with pytest.raises(UnsupportedError, match=r"^the base reads text, but the table holds arrays"):
        task_from_tables(text_base(), {"train": table})


def test_no_text_for_a_base_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        make_task(module_base(nn.Linear(2, 2)), TaskConfig(data=reviews(tmp_path)))
