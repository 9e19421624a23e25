"""Readers: files to tables. Text files keep every value as text; labels and numbers come later."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graftwork._errors import InputError, UnknownNameError
from graftwork.tasks._array_readers import ARRAY_SUFFIXES, arrays, image_folder
from graftwork.tasks._table import Column, Table

Format = Literal["csv", "tsv", "jsonl", "parquet", "conll"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".conll": "conll",
}
"""File suffix -> format; ".gz" after it is undone for text formats."""

MAX_COLUMNS = 2048
"""Columns of a text file; only these can be told to stay text before the file is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a CSV or TSV file is written.

    Attributes:
        header: whether the first row names the columns; if not, they are "0", "1", ...
        quoting: whether double quotes enclose values; None: in CSV yes, in TSV no. In GLUE's files
            it must be off: a stray quote would swallow rows up to the next one.
        delimiter: between values; None: comma in CSV, tab in TSV.
    """

    header: bool = True
    quoting: bool | None = None
    delimiter: str | None = None


def read(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    format: Format | None = None,
    header: bool = True,
    quoting: bool | None = None,
    delimiter: str | None = None,
) -> Table:
    r"""Return the table in a file or folder.

    CSV, TSV, JSONL and Parquet files keep their columns. Files of arrays (.npy, .npz, .safetensors)
    give "x" and "label" as `arrays` does, folders of pictures "image", "label" and "file" as
    `image_folder` does. A CoNLL file has a word and its columns in each line, and a blank line
    after each sentence: a row is a sentence, with the lists "words" (the first column) and "label"
    (the last one).

    Args:
        path: the file, UTF-8 for text formats, or the folder.
        columns: name in the task -> column of the file, e.g. `{"sentence": "3", "label": "1"}`;
            only these are kept. None keeps all under their own names.
        format: None tells it by the file's suffix (`SUFFIXES`).
        header: CSV and TSV: whether the first row names the columns; if not, they are "0", "1", ...
        quoting: CSV and TSV: whether double quotes enclose values; None: in CSV yes, in TSV no.
            In GLUE's files it must be off: a stray quote would swallow rows up to the next one.
        delimiter: CSV and TSV: between values; None: comma in CSV, tab in TSV.

    Raises:
        InputError: no such file, no rows, a row of another length, or broken syntax; names the row.
        UnknownNameError: a column is not in the file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "dev.tsv"
        >>> _ = file.write_text('a "fine film\t1\ndull\t0\n', encoding="utf-8")
        >>> read(file, header=False, columns={"text": "0", "label": "1"})["text"]
        ['a "fine film', 'dull']
    """
    path = Path(path)
    if format is None and (path.is_dir() or path.suffix.lower() in ARRAY_SUFFIXES):
        return _renamed(image_folder(path) if path.is_dir() else arrays(path), columns)
    layout = Layout(header=header, quoting=quoting, delimiter=delimiter)
    kind = format or _format_of(path)
    if kind not in _READERS:
        raise UnknownNameError("format", kind, _READERS)
    if not path.is_file():
        what = "is a folder; leave `format` out" if path.is_dir() else "does not exist"
        raise InputError(f"the data file {path} {what}")
    wanted = None if columns is None else list(columns.values())
    try:
        found = _READERS[kind](path, layout, wanted)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error})") from error
    table = Table(found, path.name)
    if not len(table):
        raise InputError(f"{path.name} has no rows; give at least one")
    return _renamed(table, columns)


def _renamed(table: Table, columns: Mapping[str, str] | None) -> Table:
    if columns is None:
        return table
    return Table({name: table[column] for name, column in columns.items()}, table.source)


def _format_of(path: Path) -> Format:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in SUFFIXES:
        raise UnknownNameError(
            f"file suffix of {path.name}; give `format` (one of {sorted(_READERS)}), or rename it:",
            suffix,
            SUFFIXES,
        )
    return SUFFIXES[suffix]


def _content(path: Path) -> bytes:
    from pyarrow import input_stream

    with input_stream(str(path), compression="detect") as stream:
        return bytes(stream.read())


def _delimited(path: Path, layout: Layout, default: tuple[str, bool]) -> dict[str, Column]:
    import pyarrow as pa
    from pyarrow import csv

    delimiter = default[0] if layout.delimiter is None else layout.delimiter
    quoting = default[1] if layout.quoting is None else layout.quoting
    if len(delimiter) != 1:
        raise InputError(f"delimiter {delimiter!r} must be one character")
    content = _content(path)
    ragged: list[Any] = []

    def stop(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        table = csv.read_csv(
            io.BytesIO(content),
            # One thread and one block: row numbers are known, and no row straddles two blocks.
            csv.ReadOptions(
                use_threads=False,
                block_size=min(max(len(content) + 1, 1 << 16), 2**31 - 1),
                autogenerate_column_names=True,
            ),
            csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoting else False,
                newlines_in_values=quoting,
                invalid_row_handler=stop,
            ),
            csv.ConvertOptions(
                column_types={f"f{i}": pa.string() for i in range(MAX_COLUMNS)},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise InputError(_csv_error(path, layout, ragged, str(error))) from error
    return _named_columns(table, path, layout.header)


def _csv_error(path: Path, layout: Layout, ragged: list[Any], message: str) -> str:
    if not ragged:
        if "Empty CSV" in message:
            return f"{path.name} has no rows; give at least one"
        return f"{path.name}: {message}; the file must be UTF-8 text"
    row = ragged[0]
    number = (row.number or 0) - int(layout.header)
    first = "the header" if layout.header else "row 1"
    return (
        f"{path.name}, row {number}: {row.actual_columns} values where {first} has "
        f"{row.expected_columns}: {row.text[:80]!r}; mend the row, or check delimiter and quoting"
    )


def _named_columns(table: Any, path: Path, header: bool) -> dict[str, Column]:
    if table.num_columns > MAX_COLUMNS:
        raise InputError(
            f"{path.name} has {table.num_columns} columns; at most {MAX_COLUMNS} are read from "
            "text files, use Parquet or arrays"
        )
    values = [column.to_pylist() for column in table.columns]
    if not header:
        return {str(i): column for i, column in enumerate(values)}
    names = [column[0] for column in values]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path.name}: column name(s) {twice} stand twice in the header")
    return {name: column[1:] for name, column in zip(names, values, strict=True)}


def _csv(path: Path, layout: Layout, wanted: list[str] | None) -> dict[str, Column]:
    del wanted
    return _delimited(path, layout, (",", True))


def _tsv(path: Path, layout: Layout, wanted: list[str] | None) -> dict[str, Column]:
    del wanted
    return _delimited(path, layout, ("\t", False))


def _jsonl(path: Path, layout: Layout, wanted: list[str] | None) -> dict[str, Column]:
    # Not Arrow's JSON reader: it turns text that looks like a date into a date.
    del layout, wanted
    try:
        lines = _content(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text ({error})") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path.name}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{path.name}, line {number}: {line[:60]!r} is not a JSON object")
        records.append(record)
    return dict(Table.from_records(records, path.name).columns)


def _conll(path: Path, layout: Layout, wanted: list[str] | None) -> dict[str, Column]:
    del wanted
    try:
        lines = _content(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text ({error})") from error
    sentences: list[list[list[str]]] = [[]]
    width = 0
    for number, line in enumerate(lines, 1):
        # White space between columns unless a delimiter is given.
        cells = line.strip().split(layout.delimiter) if line.strip() else []
        if not cells or cells[0] == "-DOCSTART-":
            sentences.append([])
            continue
        width = width or len(cells)
        if len(cells) < 2 or len(cells) != width:
            raise InputError(
                f"{path.name}, line {number}: {len(cells)} columns in {line[:60]!r}; every word "
                f"has {max(width, 2)}: itself first, its label last"
            )
        sentences[-1].append(cells)
    rows = [sentence for sentence in sentences if sentence]
    return {
        "words": [[cells[0] for cells in row] for row in rows],
        "label": [[cells[-1] for cells in row] for row in rows],
    }


def _parquet(path: Path, layout: Layout, wanted: list[str] | None) -> dict[str, Column]:
    import pyarrow as pa
    from pyarrow import parquet

    del layout
    try:
        file = parquet.ParquetFile(path)
        known = file.schema_arrow.names
        for name in wanted or ():
            if name not in known:
                raise UnknownNameError(f"column of {path.name}:", name, known)
        table = file.read(columns=wanted)
    except pa.ArrowException as error:
        raise InputError(f"{path.name} is not a Parquet file that can be read ({error})") from error
    return {name: _arrow_column(table[name]) for name in table.column_names}


def _arrow_column(column: Any) -> Column:
    from pyarrow import types

    numeric = types.is_floating(column.type) or types.is_integer(column.type)
    if numeric and not column.null_count:
        values: Column = column.to_numpy()
        return values
    return list(column.to_pylist())


_READERS: dict[str, Callable[[Path, Layout, list[str] | None], dict[str, Column]]] = {
    "csv": _csv,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "conll": _conll,
    "parquet": _parquet,
}
