"""The signature: JSON inside a delta that says all about how to use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError, InputError, UnknownNameError, did_you_mean
from graftwork.tasks._calls import CALLS, TaskBase, template_fields
from graftwork.tasks._encoded import ArrayInput, Encoded
from graftwork.tasks._pooling import FEATURES, POOLINGS, check_features
from graftwork.tasks._table import Table

Kind = Literal["classification", "regression"]
VERSION = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a delta says of one row.

    Attributes:
        label: the most probable label; None for regression.
        scores: label -> probability; empty for regression.
        value: the predicted number, in the units of the data; None for classification.
    """

    label: str | None = None
    scores: Mapping[str, float] | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Preprocessing, how the base is called, ports, labels, decoding; nothing else is read.

    Attributes:
        kind: "classification" (outputs are logits `(B, labels)`) or "regression" (`(B, 1)`).
        call: key of `CALLS`.
        fields: columns that are the input, in order.
        target: column that holds the label or value; only evaluation reads it.
        labels: labels in the order of the outputs; empty for regression.
        template: one template with `{column}` fields for each text; empty: a field is a text.
        max_length: tokens kept of an input (the longer text of a pair is cut first); None: all.
        pooling: key of `POOLINGS`, from positions to one vector.
        normalise: whether a pooled vector is scaled to length 1, as some sentence encoders do.
        features: parts of two encodings that the head sees; only for the call "two_encodings".
        array: preprocessing of arrays and pictures; only for the call "array".
        head: port whose module maps features to outputs; None when the module gives outputs.
        target_mean: regression: value that an output of 0 stands for.
        target_std: regression: value that an output of 1 adds.

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
    target: str = "label"
    labels: tuple[str, ...] = ()
    template: tuple[str, ...] = ()
    max_length: int | None = None
    pooling: str = "mean"
    normalise: bool = False
    features: tuple[str, ...] = FEATURES
    array: ArrayInput | None = None
    head: str | None = "head"
    target_mean: float = 0.0
    target_std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("classification", "regression"):
            raise UnknownNameError("kind", self.kind, ("classification", "regression"))
        if self.call not in CALLS:
            raise UnknownNameError("call", self.call, CALLS)
        if self.pooling not in POOLINGS:
            raise UnknownNameError("pooling", self.pooling, POOLINGS)
        self._check_inputs()
        self._check_targets()

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
        if (self.array is None) == (self.call == "array"):
            raise InputError(f"`array` goes with the call 'array', not {self.call!r}, and only so")
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length {self.max_length} must be 1 or more")

    def _check_targets(self) -> None:
        if self.kind == "classification" and len(set(self.labels)) < max(len(self.labels), 2):
            raise InputError(f"labels {self.labels} must be 2 or more different names")
        if self.kind == "regression" and self.labels:
            raise InputError(f"regression has no labels, but {self.labels} are given")
        if not (math.isfinite(self.target_mean) and 0 < self.target_std < math.inf):
            raise InputError(
                f"target_mean {self.target_mean} and target_std {self.target_std} must be finite, "
                "the second positive"
            )

    @property
    def outputs(self) -> int:
        """Outputs a row: labels, or 1 for regression."""
        return len(self.labels) if self.kind == "classification" else 1

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

    def features_of(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what a head reads, `(B, F)`; without a head, the module's outputs."""
        return CALLS[self.call].run(self, module, inputs)

    def call_model(
        self, module: nn.Module, ports: Mapping[str, nn.Module] | nn.ModuleDict, inputs: Any
    ) -> Tensor:
        """Return the outputs `(B, labels)` or `(B, 1)`: the module, then the head.

        Raises:
            DeltaError: the head's port is absent.
        """
        features = self.features_of(module, inputs)
        if self.head is None:
            return features
        if self.head not in ports:
            raise DeltaError(
                f"the signature needs the port {self.head!r}{did_you_mean(self.head, ports.keys())}"
            )
        out: Tensor = ports[self.head](features)
        return out

    def decode(self, outputs: Tensor) -> list[Prediction]:
        """Return predictions of outputs `(B, labels)` or `(B, 1)`; ties go to the first label.

        Raises:
            DeltaError: the outputs have another width.
        """
        if outputs.dim() != 2 or outputs.shape[1] != self.outputs:
            raise DeltaError(
                f"outputs of shape {tuple(outputs.shape)} do not fit {self.kind} with "
                f"{self.outputs} output(s) a row"
            )
        values = outputs.detach().double().cpu()
        if self.kind == "regression":
            scaled = values[:, 0] * self.target_std + self.target_mean
            return [Prediction(value=value) for value in scaled.tolist()]
        scores = values.softmax(1).tolist()
        best = values.argmax(1).tolist()
        return [
            Prediction(self.labels[i], dict(zip(self.labels, row, strict=True)))
            for i, row in zip(best, scores, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: strings, numbers, lists, mappings and None only."""
        return {"version": VERSION, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Return the signature that `to_json` wrote.

        Raises:
            DeltaError: a key is unknown, missing or ill-typed, or the version is another.
        """
        if not data:
            raise DeltaError("the delta has no signature: it is a bare weight difference")
        if data.get("version") != VERSION:
            raise DeltaError(
                f"signature version {data.get('version')!r} is not {VERSION}; a newer graftwork "
                "may read it"
            )
        values = _checked(data, _SIGNATURE_KEYS, "signature")
        del values["version"]
        try:
            if values["array"] is not None:
                values["array"] = ArrayInput(**_checked(values["array"], _ARRAY_KEYS, "array"))
            return cls(**values)
        except InputError as error:
            raise DeltaError(f"the delta's signature: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


Check = tuple[str, Callable[[Any], bool]]


def _is_int(value: Any) -> bool:
    # Bounded, since JSON may hold integers that no tensor, float or tokenizer takes.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(check(item) for item in value)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_TEXT: Check = ("a string", _is_text)
_TEXTS: Check = ("a list of strings", _list_of(_is_text))
_NUMBER: Check = ("a finite number", _is_number)
_SIGNATURE_KEYS: dict[str, Check] = {
    "version": ("an integer", _is_int),
    "kind": _TEXT,
    "call": _TEXT,
    "fields": _TEXTS,
    "target": _TEXT,
    "labels": _TEXTS,
    "template": _TEXTS,
    "max_length": ("an integer or null", _or_none(_is_int)),
    "pooling": _TEXT,
    "normalise": ("true or false", lambda value: isinstance(value, bool)),
    "features": _TEXTS,
    "array": ("a mapping or null", _or_none(lambda value: isinstance(value, Mapping))),
    "head": ("a string or null", _or_none(_is_text)),
    "target_mean": _NUMBER,
    "target_std": _NUMBER,
}
_ARRAY_KEYS: dict[str, Check] = {
    "shape": ("a list of positive integers", _list_of(lambda v: _is_int(v) and v > 0)),
    "dtype": _TEXT,
    "scale": _NUMBER,
    "mean": ("a list of numbers", _list_of(_is_number)),
    "std": ("a list of numbers", _list_of(_is_number)),
    "picture": _TEXT,
}


def _checked(data: Mapping[str, Any], keys: Mapping[str, Check], what: str) -> dict[str, Any]:
    for key in data:
        if key not in keys:
            raise DeltaError(f"{what}: unknown key {key!r}{did_you_mean(key, keys)}")
    for key, (kind, check) in keys.items():
        if key not in data:
            raise DeltaError(f"{what}: the key {key!r} is missing")
        if not check(data[key]):
            raise DeltaError(f"{what}: {key!r} must be {kind}, not {data[key]!r}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
