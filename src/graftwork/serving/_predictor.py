"""Predictions of many tasks in one batch: what a user calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graftwork._batch import Batch
from graftwork._errors import ConfigError, UnknownNameError, UnsupportedError
from graftwork.deltas import Delta
from graftwork.serving._executor import MixerConfig
from graftwork.serving._mixer import Mixer
from graftwork.serving._report import Report
from graftwork.tasks import SEQUENCES, Encoded, Prediction, Signature, TaskBase

Request = tuple[str, Mapping[str, Any]]
"""Key of a delta, and one row of its task."""


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One request: where it stands, and its row among those of its delta."""

    place: int
    key: str
    row: int
    length: int


class MixedPredictor:
    """Holds deltas of one base and predicts rows of all their tasks together.

    Each row is read, called and decoded by its own delta's signature, and gets what
    `graftwork.tasks.predict` gives. Rows whose signatures call the base alike share forwards,
    whatever their labels; others have forwards of their own.

    Args:
        base: the base of the deltas.
        config: what is kept; see `Mixer`.

    Example:
        >>> import torch
        >>> from graftwork import bases, deltas, tasks
        >>> base = bases.load(torch.nn.Linear(2, 2))
        >>> signature = tasks.Signature(
        ...     kind="classification",
        ...     call="array",
        ...     fields=("x",),
        ...     labels=("no", "yes"),
        ...     array=tasks.ArrayInput((2,)),
        ...     head=None,
        ... )
        >>> delta = deltas.Delta(
        ...     {"bias": deltas.Update((2,), dense=torch.tensor([0.0, 9.0]))},
        ...     signature=signature.to_json(),
        ...     fingerprint=deltas.fingerprint_of(base, ["bias"]),
        ... )
        >>> mixed = MixedPredictor(base)
        >>> key = mixed.add(delta)
        >>> mixed.predict([(key, {"x": [0.0, 0.0]})])[0].label
        'yes'
    """

    def __init__(self, base: TaskBase, config: MixerConfig | None = None) -> None:
        self.base = base
        self.mixer = Mixer(base, config)
        self._signatures: dict[str, Signature] = {}
        self._device = next((p.device for p in base.model.parameters()), torch.device("cpu"))

    def add(self, delta: Delta) -> str:
        """Hold a delta, and return the key that requests name it by: its content hash.

        Raises:
            FingerprintError: it was made for another base.
            DeltaError: it has no signature.
            UnsupportedError: its outputs go position by position.
        """
        signature = Signature.from_json(delta.signature)
        if signature.kind in SEQUENCES:
            raise UnsupportedError(
                f"outputs of kind {signature.kind!r} go position by position; predict them with "
                "graftwork.tasks.predict, or run them with Mixer"
            )
        key = self.mixer.add(delta)
        self._signatures[key] = signature
        return key

    def remove(self, key: str) -> None:
        """Let a delta go.

        Raises:
            UnknownNameError: it is not held.
        """
        self.mixer.remove(key)
        del self._signatures[key]

    def predict(
        self, requests: Sequence[Request], batch_size: int = 64, report: Report | None = None
    ) -> list[Prediction]:
        """Return one prediction a request, in order.

        Args:
            requests: (key, row) each.
            batch_size: rows at a time; rows of like length go together.
            report: is filled with how batches were run.

        Raises:
            UnknownNameError: a key is not held, or a row has a column that its task does not know.
            InputError: a column or a value is missing.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size: 1 or more, not {batch_size}")
        encoded, rows = self._encoded(requests)
        found: list[Prediction | None] = [None] * len(requests)
        for chunk in self._chunks(rows, batch_size):
            outputs = self._run(chunk, encoded, report)
            for row, output in zip(chunk, outputs, strict=True):
                found[row.place] = self._signatures[row.key].decode(output[None])[0]
        return [prediction for prediction in found if prediction is not None]

    def _encoded(self, requests: Sequence[Request]) -> tuple[dict[str, Encoded], list[_Row]]:
        """Return the rows of each delta, encoded, and where each request stands in them."""
        places: dict[str, list[int]] = {}
        for place, (key, _) in enumerate(requests):
            if key not in self._signatures:
                raise UnknownNameError("delta", key, self._signatures)
            places.setdefault(key, []).append(place)
        encoded, rows = {}, []
        for key, own in places.items():
            signature = self._signatures[key]
            table = signature.table_of([requests[place][1] for place in own])
            encoded[key] = signature.encode_table(self.base, table)
            lengths = encoded[key].lengths.tolist()
            rows += [_Row(p, key, i, n) for i, (p, n) in enumerate(zip(own, lengths, strict=True))]
        return encoded, rows

    def _chunks(self, rows: Sequence[_Row], size: int) -> Iterator[list[_Row]]:
        """Yield rows that share a forward."""
        alike: dict[Any, list[_Row]] = {}
        for row in rows:
            alike.setdefault(_called(self._signatures[row.key]), []).append(row)
        for same in alike.values():
            same.sort(key=lambda row: (row.length, row.place))
            for start in range(0, len(same), size):
                yield same[start : start + size]

    def _run(
        self, chunk: Sequence[_Row], encoded: Mapping[str, Encoded], report: Report | None
    ) -> list[Tensor]:
        parts: dict[str, list[int]] = {}
        for at, row in enumerate(chunk):
            parts.setdefault(row.key, []).append(at)
        inputs = [
            encoded[key].collate(np.asarray([chunk[at].row for at in own]))
            for key, own in parts.items()
        ]
        order = [at for own in parts.values() for at in own]
        together = self._joined(inputs)
        batch = Batch(together, None, torch.arange(len(chunk))).to(self._device)
        plan = self.mixer.plan([[(chunk[at].key, 1.0)] for at in order])
        signature = self._signatures[chunk[0].key]
        outputs = self.mixer.run(plan, batch, signature.call_model, report)
        found = dict(zip(order, outputs, strict=True))
        return [found[at] for at in range(len(chunk))]

    def _joined(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the inputs of several tasks as one batch, padded to the longest."""
        pad = getattr(self.base.tokenizer, "pad_token_id", None) or 0
        found = {}
        for name in parts[0]:
            tensors = [part[name] for part in parts]
            if "attention_mask" in parts[0]:
                longest = max(tensor.shape[-1] for tensor in tensors)
                fill = pad if name == "input_ids" else 0
                tensors = [
                    functional.pad(t, (0, longest - t.shape[-1]), value=fill) for t in tensors
                ]
            found[name] = torch.cat(tensors)
        return found


def _called(signature: Signature) -> tuple[Any, ...]:
    """Return what must be equal for two signatures to share a forward."""
    return (
        signature.call,
        signature.pooling,
        signature.normalise,
        signature.features if signature.call == "two_encodings" else (),
        None if signature.array is None else signature.array.shape,
        signature.input,
        signature.head,
    )
