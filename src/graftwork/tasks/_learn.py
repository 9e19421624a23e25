"""Rows to learn from or to measure on: their inputs, their targets, and what was cut of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from graftwork._errors import InputError
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._encoded import Encoded
from graftwork.tasks._language import encode_learnt
from graftwork.tasks._sequences import Ragged, WordTokens
from graftwork.tasks._signature import Signature
from graftwork.tasks._table import Table
from graftwork.tasks._targets import encode_targets
from graftwork.tasks._word_labels import word_targets


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """All rows of a table, encoded.

    Attributes:
        encoded: the inputs.
        targets: of each row; None where the table has no target column.
        cut: words (kind "tokens") or tokens (kind "text") that are left out since their rows are
            longer than `max_length`.
    """

    encoded: Encoded
    targets: Tensor | Ragged | None
    cut: int = 0


def encode_rows(signature: Signature, base: TaskBase, table: Table) -> Rows:
    """Return all rows of `table` with their targets.

    Raises:
        InputError: a column is absent, a value missing or of the wrong kind, or of a row nothing
            can be learnt; names the row.
        UnknownNameError: a label is not in the signature.
    """
    if signature.kind == "text":
        return _texts(signature, base, table)
    encoded = signature.encode_table(base, table)
    if not isinstance(encoded, WordTokens):
        return Rows(encoded, encode_targets(table, signature))
    if signature.targets[0] not in table:
        return Rows(encoded, None, encoded.cut)
    return Rows(encoded, word_targets(table, signature, encoded), encoded.cut)


def _texts(signature: Signature, base: TaskBase, table: Table) -> Rows:
    if not len(table):
        raise InputError(f"{table.source} has no rows; give at least one")
    completion = signature.targets[0] if signature.targets else None
    if completion is not None and completion not in table:
        return Rows(signature.encode_table(base, table), None)
    return Rows(*encode_learnt(signature, base, table, completion))
