"""The signature: JSON inside a delta that says all about how to use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError, InputError, UnknownNameError, UnsupportedError
from graftwork.tasks._call_spec import Ports, TaskBase, port_named
from graftwork.tasks._calls import CALLS
from graftwork.tasks._encoded import ArrayInput, Encoded
from graftwork.tasks._language_input import LanguageInput
from graftwork.tasks._pooling import FEATURES, POOLINGS, check_features
from graftwork.tasks._signature_json import (
    VERSION,
    checked_array,
    checked_language,
    checked_signature,
    plain,
    written,
)
from graftwork.tasks._table import Table
from graftwork.tasks._texts import template_fields

Kind = Literal["classification", "regression", "binary", "multilabel", "vector", "tokens", "text"]
"""What the outputs mean: logits of one label, values, logits of yes/no for each target, logits of
yes/no for each label, numbers as they are, logits of one label for each word, or logits of the next
token."""

SEQUENCES: Mapping[str, str] = {"tokens": "words", "text": "language"}
"""Kinds whose outputs go position by position, `(B, L, outputs)` -> their call."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a delta says of one row; what the kind of task does not have is None.

    Attributes:
        label: classification: the most probable label.
        scores: classification: label -> probability; binary: target -> probability of yes;
            multilabel: label -> probability that the row has it.
        value: regression of one target: the predicted number, in the units of the data.
        values: regression: target -> predicted number, in the units of the data.
        vector: kind "vector": the outputs as they are.
        labels: multilabel: the labels that are more probable than not, in the signature's order.
            Tokens: the label of each word; None for a word of which the base reads nothing, since
            the row was cut at `max_length`.
        text: kind "text": the answer, without the token that ends it.
    """

    label: str | None = None
    scores: Mapping[str, float] | None = None
    value: float | None = None
    values: Mapping[str, float] | None = None
    vector: tuple[float, ...] | None = None
    labels: tuple[str | None, ...] | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Preprocessing, how the base is called, ports, labels, decoding; nothing else is read.

    Attributes:
        kind: "classification" (outputs are logits `(B, labels)`), "regression" (values `(B, T)` of
            T targets), "binary" (logits `(B, T)` of T yes/no targets), "multilabel" (logits
            `(B, labels)`, of which a row may have any number), "vector" (`(B, n)` as they are,
            such as a policy's actions), "tokens" (logits `(B, L, labels)`; the label of a word is
            that at its first token) or "text" (logits `(B, L, vocabulary)` of the next token).
        call: key of `CALLS`.
        fields: columns that are the input, in order.
        targets: columns that hold the label or values; only training and evaluation read them.
            Classification and multilabel have one; of several, each row may lack some (None, NaN,
            blank). Text has the column of completions, or none.
        labels: classification, multilabel and tokens: labels in the order of the outputs. Binary:
            the words for no and yes; empty: 0 and 1, false and true, or no and yes. Else empty.
        template: one template with `{column}` fields for each text; empty: a field is a text.
        max_length: tokens kept of an input (the longer text of a pair is cut first); None: all.
        pooling: key of `POOLINGS`, from positions to one vector.
        normalise: whether a pooled vector is scaled to length 1, as some sentence encoders do.
        features: parts of two encodings that the head sees; only for the call "two_encodings".
        array: preprocessing of arrays and pictures; only for the calls "array" and "embedded".
        head: port whose module maps features to outputs; None when the module gives outputs.
        target_mean: regression: value of each target that an output of 0 stands for; empty: 0.
        target_std: regression: value of each target that an output of 1 adds; empty: 1.
        input: port that embeds foreign inputs; only for the call "embedded".
        language: what is learnt of a text and how it ends; only for the call "language".

    Raises:
        InputError: fields that do not go together; names the field.

    Example:
        >>> signature = Signature(
        ...     kind="classification", call="single", fields=("text",), labels=("neg", "pos")
        ... )
        >>> signature.decode(torch.tensor([[0.0, 2.0]]))[0].label
        'pos'
        >>> Signature.from_json(signature.to_json()) == signature
        True
    """

    kind: Kind
    call: str
    fields: tuple[str, ...]
    targets: tuple[str, ...] = ("label",)
    labels: tuple[str, ...] = ()
    template: tuple[str, ...] = ()
    max_length: int | None = None
    pooling: str = "mean"
    normalise: bool = False
    features: tuple[str, ...] = FEATURES
    array: ArrayInput | None = None
    head: str | None = "head"
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    input: str | None = None
    language: LanguageInput | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UnknownNameError("kind", self.kind, get_args(Kind))
        if self.call not in CALLS:
            raise UnknownNameError("call", self.call, CALLS)
        if self.pooling not in POOLINGS:
            raise UnknownNameError("pooling", self.pooling, POOLINGS)
        if self.kind == "regression":
            count = len(self.targets)
            object.__setattr__(self, "target_mean", self.target_mean or (0.0,) * count)
            object.__setattr__(self, "target_std", self.target_std or (1.0,) * count)
        self._check_inputs()
        self._check_sequence()
        self._check_targets()
        self._check_labels()

    def _check_inputs(self) -> None:
        texts = CALLS[self.call].texts
        count = len(self.template) or len(self.fields)
        if texts and count != texts:
            raise InputError(
                f"the call {self.call!r} reads {texts} text(s), but {count} are given: "
                f"{self.template or self.fields}; join columns by a template such as '{{a}} {{b}}'"
            )
        named = {name for template in self.template for name in template_fields(template)}
        if not self.fields or (self.template and named != set(self.fields)):
            raise InputError(
                f"fields {self.fields} are not the columns that the templates name: {sorted(named)}"
            )
        if self.call == "two_encodings":
            check_features(self.features)
            if self.head is None:
                raise InputError("the call 'two_encodings' needs a head: features are no outputs")
        if (self.array is None) == (texts == 0):
            raise InputError(
                "`array` goes with the calls 'array' and 'embedded', and only so; the call is "
                f"{self.call!r}"
            )
        if (self.input is None) == (self.call == "embedded"):
            raise InputError(
                f"`input` {self.input!r} goes with the call 'embedded', and only so; the call is "
                f"{self.call!r}"
            )
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length {self.max_length} must be 1 or more")

    def _check_sequence(self) -> None:
        wanted = SEQUENCES.get(self.kind)
        if wanted != (self.call if self.call in SEQUENCES.values() else None):
            pairs = ", ".join(f"{kind!r} with {call!r}" for kind, call in SEQUENCES.items())
            raise InputError(
                f"kind {self.kind!r} does not go with the call {self.call!r}; these go together, "
                f"and only so: {pairs}"
            )
        if (self.language is None) == (self.call == "language"):
            raise InputError("`language` goes with the call 'language', and only so")
        if wanted is not None and self.normalise:
            raise InputError(
                f"kind {self.kind!r} has no pooled vector that `normalise` could scale"
            )
        if self.call == "words" and self.template:
            raise InputError("the call 'words' reads a column of words, not a template")
        if self.language is None:
            return
        if self.head is not None:
            raise InputError("kind 'text' has no head: the base gives the logits; set head to None")
        if self.language.form == "messages" and self.template:
            raise InputError("messages are written by the base's chat template, not by a template")
        if (self.language.form == "completion") != bool(self.targets):
            raise InputError(
                f"text of the form {self.language.form!r} with the targets {self.targets}: the "
                "form 'completion', and only it, has one target, the column of completions"
            )

    def _check_targets(self) -> None:
        targets = self.targets
        least, most = _TARGETS[self.kind]
        if not least <= len(targets) <= most or len(set(targets)) < len(targets):
            wanted = "one or more different targets" if most > 1 else f"{most} target(s)"
            raise InputError(f"{self.kind} has {wanted}, but {targets} are given")
        wanted_size = len(targets) if self.kind == "regression" else 0
        mean, std = self.target_mean, self.target_std
        if len(mean) != wanted_size or len(std) != wanted_size:
            raise InputError(
                f"target_mean {mean} and target_std {std} must have {wanted_size} number(s): one "
                "for each target of a regression, else none"
            )
        if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
            raise InputError(
                f"target_mean {mean} and target_std {std} must be finite, the second positive"
            )

    def _check_labels(self) -> None:
        labels = self.labels
        different = len(set(labels)) == len(labels)
        if self.kind in ("classification", "tokens") and (not different or len(labels) < 2):
            raise InputError(f"labels {labels} must be 2 or more different names")
        if self.kind == "binary" and labels and (not different or len(labels) != 2):
            raise InputError(f"labels {labels} of yes/no targets must be the words for no and yes")
        if self.kind == "multilabel" and (not different or not labels):
            raise InputError(f"labels {labels} must be 1 or more different names")
        if self.kind in ("regression", "vector", "text") and labels:
            raise InputError(f"{self.kind} has no labels, but {labels} are given")

    @property
    def outputs(self) -> int | None:
        """Outputs a row or position: labels, or targets; None where the module decides."""
        if self.kind in ("vector", "text"):
            return None
        return len(self.labels) if self.kind in _LABELLED else len(self.targets)

    def encode_table(self, base: TaskBase, table: Table) -> Encoded:
        """Return all rows of `table` ready to be put into batches; other columns are not read.

        Raises:
            InputError: a column is absent, or a value missing or of the wrong kind.
        """
        if not len(table):
            raise InputError(f"{table.source} has no rows; give at least one")
        return CALLS[self.call].encode(self, base, table)

    def encode(self, base: TaskBase, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the inputs of `records`, padded to the longest of them.

        Args:
            base: gives the tokenizer.
            records: one mapping a row with exactly the columns `fields`.

        Raises:
            UnknownNameError: a record has a column that the signature does not know.
            InputError: a column is missing, or a value is.
        """
        table = self.table_of(records)
        encoded = self.encode_table(base, table)
        return encoded.collate(torch.arange(len(table)).numpy())

    def table_of(self, records: Sequence[Mapping[str, Any]]) -> Table:
        """Return `records` as a table of exactly the columns `fields`.

        Raises:
            UnknownNameError: a record has a column that the signature does not know.
            InputError: there are no records, or a column is missing.
        """
        for row, record in enumerate(records):
            for name in record:
                if name not in self.fields:
                    raise UnknownNameError(f"column in record {row + 1}:", name, self.fields)
            absent = [name for name in self.fields if name not in record]
            if absent:
                raise InputError(f"record {row + 1} lacks the column(s) {absent}")
        return Table.from_records(records)

    def features_of(self, module: nn.Module, ports: Ports, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what a head reads, `(B, F)`; without a head, the module's outputs.

        Raises:
            DeltaError: the input's port is absent.
        """
        return CALLS[self.call].run(self, module, ports, inputs)

    def call_model(self, module: nn.Module, ports: Ports, inputs: Any) -> Tensor:
        """Return the outputs `(B, outputs)`: the input's port, the module, then the head.

        Raises:
            DeltaError: a port is absent.
        """
        features = self.features_of(module, ports, inputs)
        if self.head is None:
            return features
        out: Tensor = port_named(ports, self.head)(features)
        return out

    def decode(self, outputs: Tensor) -> list[Prediction]:
        """Return predictions of outputs `(B, outputs)`; ties go to the first label.

        Raises:
            DeltaError: the outputs have another width.
            UnsupportedError: the kind's outputs go position by position: `predict` reads them.
        """
        if self.kind in SEQUENCES:
            raise UnsupportedError(
                f"outputs of kind {self.kind!r} go position by position and are no row's answer by "
                "themselves; use graftwork.tasks.predict"
            )
        if outputs.dim() != 2 or outputs.shape[1] != (self.outputs or outputs.shape[1]):
            raise DeltaError(
                f"outputs of shape {tuple(outputs.shape)} do not fit {self.kind} with "
                f"{self.outputs or 'any number of'} output(s) a row"
            )
        return _DECODERS[self.kind](self, outputs.detach().double().cpu())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: strings, numbers, lists, mappings and None only."""
        return {"version": VERSION, **plain(written(asdict(self)))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Return the signature that `to_json` wrote, in this version of it or an older one.

        Raises:
            DeltaError: a key is unknown, missing or ill-typed, or the version is a newer one.
        """
        values = checked_signature(data)
        try:
            if values["array"] is not None:
                values["array"] = ArrayInput(**checked_array(values["array"]))
            if values["language"] is not None:
                values["language"] = LanguageInput(**checked_language(values["language"]))
            return cls(**values)
        except InputError as error:
            raise DeltaError(f"the delta's signature: {error}") from error


_TARGETS: dict[Kind, tuple[float, float]] = {
    "classification": (1, 1),
    "regression": (1, math.inf),
    "binary": (1, math.inf),
    "multilabel": (1, 1),
    "vector": (0, 0),
    "tokens": (1, 1),
    "text": (0, 1),
}
"""Kind -> fewest and most targets."""

_LABELLED: tuple[Kind, ...] = ("classification", "multilabel", "tokens")
"""Kinds with an output for each label."""


def _labels(signature: Signature, outputs: Tensor) -> list[Prediction]:
    labels = signature.labels
    return [
        Prediction(labels[i], dict(zip(labels, row, strict=True)))
        for i, row in zip(outputs.argmax(1).tolist(), outputs.softmax(1).tolist(), strict=True)
    ]


def _values(signature: Signature, outputs: Tensor) -> list[Prediction]:
    mean, std = (outputs.new_tensor(v) for v in (signature.target_mean, signature.target_std))
    names = signature.targets
    return [
        Prediction(
            value=row[0] if len(names) == 1 else None, values=dict(zip(names, row, strict=True))
        )
        for row in (outputs * std + mean).tolist()
    ]


def _yes_or_no(signature: Signature, outputs: Tensor) -> list[Prediction]:
    names = signature.targets
    rows = outputs.sigmoid().tolist()
    return [Prediction(scores=dict(zip(names, row, strict=True))) for row in rows]


def _label_sets(signature: Signature, outputs: Tensor) -> list[Prediction]:
    labels = signature.labels
    scored = [dict(zip(labels, row, strict=True)) for row in outputs.sigmoid().tolist()]
    return [
        Prediction(scores=row, labels=tuple(label for label, p in row.items() if p > 0.5))
        for row in scored
    ]


def _vectors(signature: Signature, outputs: Tensor) -> list[Prediction]:
    del signature
    return [Prediction(vector=tuple(row)) for row in outputs.tolist()]


_DECODERS: dict[str, Callable[[Signature, Tensor], list[Prediction]]] = {
    "classification": _labels,
    "regression": _values,
    "binary": _yes_or_no,
    "multilabel": _label_sets,
    "vector": _vectors,
}
