"""Prediction and evaluation by a delta: of the task they read its signature, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._batch import Batch, map_tree
from graftwork._errors import InputError
from graftwork.deltas import Delta, build_ports, check, view
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._encoded import Encoded
from graftwork.tasks._generate import answers, groups_of_one_length
from graftwork.tasks._language import end_id
from graftwork.tasks._sequence_evaluator import scorer_for
from graftwork.tasks._sequences import WordTokens
from graftwork.tasks._signature import Prediction, Signature
from graftwork.tasks._stream import TableStream
from graftwork.tasks._table import Table


class Predictor:
    """A delta bound to a base, ready for any number of calls; the base is not changed.

    Args:
        base: the base that the delta was made for.
        delta: gives weights, ports and signature.

    Raises:
        FingerprintError: the delta was made for another base.
        DeltaError: the delta has no signature, or its head does not fit it.
    """

    def __init__(self, base: TaskBase, delta: Delta) -> None:
        self.signature = Signature.from_json(delta.signature)
        check(base, delta)
        self.base = base
        self.module: nn.Module = view(base, delta).eval()
        self.device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        self.ports: nn.ModuleDict = build_ports(delta).to(self.device).eval()
        before = [p.config["length"] for p in delta.ports.values() if p.kind in _BEFORE]
        self._before: int = sum(int(length) for length in before)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the outputs of a batch, `(B, outputs)`; of words and texts `(B, L, outputs)`."""
        inputs = map_tree(lambda tensor: tensor.to(self.device), batch.inputs)
        return self.signature.call_model(self.module, self.ports, inputs)

    def predict(
        self, records: Sequence[Mapping[str, Any]] | Table, batch_size: int = 64
    ) -> list[Prediction]:
        """Return one prediction a row, in order; see `predict`."""
        table = records if isinstance(records, Table) else self.signature.table_of(records)
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} must be 1 or more")
        encoded = self.signature.encode_table(self.base, table)
        if self.signature.kind == "text":
            return self._texts(encoded, batch_size)
        order = torch.from_numpy(encoded.lengths).argsort(stable=True)
        if isinstance(encoded, WordTokens):
            return self._words(encoded, order, batch_size)
        parts = []
        with torch.no_grad():
            for rows in order.split(batch_size):
                inputs = encoded.collate(rows.numpy())
                parts.append(self(Batch(inputs, None, rows)).double().cpu())
        return self.signature.decode(torch.cat(parts)[order.argsort()])

    def _words(self, encoded: WordTokens, order: Tensor, batch_size: int) -> list[Prediction]:
        labels = self.signature.labels
        found: dict[int, Prediction] = {}
        for rows in order.split(batch_size):
            with torch.no_grad():
                logits = self(Batch(encoded.collate(rows.numpy()), None, rows))
            best = logits.argmax(-1).cpu()
            for row, at in zip(rows.tolist(), best.tolist(), strict=True):
                places = encoded.places.row(row).tolist()
                said = tuple(labels[at[place]] if place >= 0 else None for place in places)
                found[row] = Prediction(labels=said)
        return [found[row] for row in range(len(order))]

    def _texts(self, encoded: Encoded, batch_size: int) -> list[Prediction]:
        language, tokenizer = self.signature.language, self.base.tokenizer
        assert language is not None
        end = end_id(self.base, language)
        found: dict[int, Prediction] = {}
        for rows in groups_of_one_length(encoded.lengths, batch_size):
            ids = encoded.collate(rows)["input_ids"].to(self.device)
            most = self._room(ids.shape[1], language.max_new_tokens)
            made = answers(self.module, ids, end=end, most=most, whole=self._before > 0)
            for row, answer in zip(rows.tolist(), made, strict=True):
                text = tokenizer.decode(
                    answer, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                found[row] = Prediction(text=text)
        return [found[row] for row in range(len(encoded.lengths))]

    def _room(self, length: int, wanted: int) -> int:
        """Return how many tokens an answer to `length` tokens may have."""
        if self.base.max_length is None:
            return wanted
        return max(min(wanted, self.base.max_length - length - self._before), 1)


_BEFORE = ("prompt", "prefix")
"""Kinds of ports that put positions of their own before the input."""


def predict(
    base: TaskBase,
    delta: Delta,
    records: Sequence[Mapping[str, Any]] | Table,
    batch_size: int = 64,
) -> list[Prediction]:
    """Return one prediction a row, in order.

    Args:
        base: the base that the delta was made for.
        delta: gives weights, ports and signature. To predict often, keep a `Predictor`.
        records: one mapping a row with exactly the signature's columns, or a table with at least
            these (a file often has more, such as ids).
        batch_size: rows at a time; rows of like length go together.

    Raises:
        FingerprintError: the delta was made for another base.
        DeltaError: the delta has no signature.
        UnknownNameError: a record has a column that the signature does not know.
        InputError: a column or a value is missing, or there are no records.
    """
    return Predictor(base, delta).predict(records, batch_size)


def evaluate_delta(
    base: TaskBase,
    delta: Delta,
    table: Table,
    *,
    metrics: tuple[str, ...] = (),
    group: str | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Return metric values of a delta on a table with the signature's columns and targets.

    Args:
        base: the base that the delta was made for.
        delta: gives weights, ports and signature.
        table: rows to evaluate on.
        metrics: keys of `METRICS`, for words and texts of `SEQUENCE_METRICS`; empty: the defaults
            of the kind of task.
        group: column whose values part the rows; adds "metric/value" for each.
        batch_size: rows at a time.

    Raises:
        FingerprintError: the delta was made for another base.
        DeltaError: the delta has no signature.
        InputError: a column, value or target is missing, or a label unknown; names the row.
    """
    predictor = Predictor(base, delta)
    signature = predictor.signature
    for name in signature.targets:
        # Without this, an absent column would only be seen as "no targets".
        table[name]
    stream = TableStream(table=table, signature=signature, base=base, name="eval", group=group)
    return scorer_for(signature, metrics).evaluate(predictor, stream, batch_size)
