"""A table: named columns of equal length that remember where each row came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graftwork._errors import InputError, UnknownNameError
from graftwork.tasks._pinned import permutation

Column = list[Any] | NDArray[Any]
"""A list of values, or an array whose first dimension is the row."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of data in memory.

    Args:
        columns: name -> values: a list, a tuple, an array or a tensor; all of one length.
        source: what errors call the data, usually the file's name.
        origin: `(rows,)` row of each row in its source, counted from 0; None for all in order.

    Raises:
        InputError: columns of different lengths.

    Example:
        >>> table = Table({"text": ["good", "bad", "fine"], "label": ["+", "-", "+"]})
        >>> len(table), table["label"]
        (3, ['+', '-', '+'])
        >>> table.take([2, 0])["text"]
        ['fine', 'good']
    """

    columns: Mapping[str, Any]
    source: str = "the table"
    origin: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        columns = {str(name): _as_column(values) for name, values in self.columns.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{self.source}: columns of different lengths: {lengths}")
        object.__setattr__(self, "columns", columns)

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]], source: str = "records") -> Table:
        """Return the table of a list of mappings that all have the same keys.

        Raises:
            InputError: a record has other keys than the first; names the row and the keys.
        """
        names = list(records[0]) if records else []
        for row, record in enumerate(records):
            if set(record) != set(names):
                raise InputError(
                    f"{source}, row {row + 1}: columns {sorted(record)} differ from those of "
                    f"row 1, {sorted(names)}; give every record the same columns"
                )
        return cls({name: [record[name] for record in records] for name in names}, source)

    def __len__(self) -> int:
        """Return the number of rows."""
        return next((len(values) for values in self.columns.values()), 0)

    def __getitem__(self, name: str) -> Column:
        """Return the values of a column.

        Raises:
            UnknownNameError: no such column.
        """
        if name not in self.columns:
            raise UnknownNameError(f"column of {self.source}:", name, self.columns)
        values: Column = self.columns[name]
        return values

    def __contains__(self, name: object) -> bool:
        """Return whether there is a column of this name."""
        return name in self.columns

    def where(self, row: int) -> str:
        """Return how errors name a row: source and number, counted from 1, header not counted."""
        origin = row if self.origin is None else int(self.origin[row])
        return f"{self.source}, row {origin + 1}"

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Table:
        """Return the given rows in that order; errors still name their rows in the source."""
        index = np.asarray(rows, dtype=np.int64)
        origin = np.arange(len(self)) if self.origin is None else self.origin
        columns: dict[str, Column] = {
            name: values[index] if isinstance(values, np.ndarray) else [values[i] for i in index]
            for name, values in self.columns.items()
        }
        return Table(columns, self.source, origin[index])

    def select(self, names: Sequence[str]) -> Table:
        """Return the table of the named columns only.

        Raises:
            UnknownNameError: no such column.
        """
        return Table({name: self[name] for name in names}, self.source, self.origin)

    def sample(self, count: int | None, seed: int) -> Table:
        """Return `count` rows drawn without replacement, in their order; all when None or more."""
        if count is None or count >= len(self):
            return self
        return self.take(np.sort(permutation(len(self), seed, "sample")[:count]))

    def split(self, share: float, seed: int) -> tuple[Table, Table]:
        """Return (the rest, `share` of the rows), each in order; at least one row in each.

        Raises:
            InputError: fewer than 2 rows, or a share outside (0, 1).

        Example:
            >>> rest, part = Table({"x": list(range(10))}).split(0.2, seed=0)
            >>> len(rest), len(part), sorted(rest["x"] + part["x"]) == list(range(10))
            (8, 2, True)
        """
        if not 0 < share < 1:
            raise InputError(f"share {share!r} is not between 0 and 1; try 0.1")
        if len(self) < 2:
            raise InputError(f"{self.source}: {len(self)} rows cannot be split; give 2 or more")
        part = min(max(round(len(self) * share), 1), len(self) - 1)
        order = permutation(len(self), seed, "split")
        return self.take(np.sort(order[part:])), self.take(np.sort(order[:part]))

    def records(self) -> Iterator[dict[str, Any]]:
        """Iterate over the rows as mappings."""
        for row in range(len(self)):
            yield {name: values[row] for name, values in self.columns.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of names and values; neither the source's name nor the column order."""
        total = hashlib.sha256()
        for name in sorted(self.columns):
            total.update(json.dumps(name).encode())
            total.update(_column_digest(self.columns[name]))
        return total.hexdigest()


def _as_column(values: Any) -> Column:
    if isinstance(values, torch.Tensor):
        return np.asarray(values.detach().cpu().numpy())
    if isinstance(values, np.ndarray):
        return values.tolist() if values.dtype.kind in "OUS" else values
    if isinstance(values, str | bytes):
        raise InputError(f"a column must be a list or an array, not the text {values[:40]!r}")
    return list(values)


def _column_digest(values: Column) -> bytes:
    total = hashlib.sha256()
    if isinstance(values, np.ndarray):
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        total.update(f"{little.dtype.str}{little.shape}".encode())
        total.update(little.tobytes())
        return total.digest()
    for value in values:
        kind, content = _value_bytes(value)
        total.update(f"{kind}{len(content)}:".encode())
        total.update(content)
    return total.digest()


def _value_bytes(value: Any) -> tuple[str, bytes]:
    if isinstance(value, str):
        return "s", value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return "b", value
    if isinstance(value, np.ndarray | torch.Tensor):
        return "a", _column_digest(_as_column(value))
    if isinstance(value, np.generic):
        value = value.item()
    return "j", json.dumps(value, sort_keys=True, default=repr).encode()
