"""`graftwork predict`: use a delta on texts or on the rows of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from graftwork._errors import InputError, StorageError
from graftwork.cli._data import load_base, load_delta, read_rows
from graftwork.cli._shared import emit, err, out, parse

if TYPE_CHECKING:
    from graftwork.tasks import Prediction, Signature, Table

HELP = """Use a delta; it holds all that is needed beside its base.

example: graftwork predict runs/reviews --text "a fine film" "dull"
         graftwork predict runs/reviews --data new.csv --out predictions.jsonl"""
SHOWN = 20
"""Rows printed for people; --json and --out give all."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork predict`."""

    delta: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DELTA")]
    """File of the delta, or folder of its run."""
    text: tuple[str, ...] = ()
    """Texts, prompts or questions; for a task over two texts, pairs of them: premise hypothesis
    premise hypothesis."""
    data: Path | None = None
    """Rows in place of texts: CSV, TSV, JSONL, Parquet, arrays, or a folder of pictures."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name in the delta -> column of the file, in pairs: sentence text."""
    header: bool = True
    """CSV and TSV: the columns are called "0", "1" and so on; default: the first row names them."""
    out: Path | None = None
    """JSONL file for the predictions, one line a row."""
    base: str | None = None
    """The base; default: the one that the delta says it was made for."""
    batch_size: int = 64
    """Rows at a time."""
    device: str = "cpu"
    """Where to run, such as cuda."""
    json: bool = False
    """Print one JSON document: {delta, base, predictions}; a prediction has inputs, and label and
    scores, value, values of several targets, scores of yes/no targets, a vector, labels of words,
    or text."""


def main(words: list[str]) -> None:
    """Run `graftwork predict`."""
    flags = parse(Flags, words, prog="graftwork predict", description=HELP)
    if bool(flags.text) == (flags.data is not None):
        raise InputError("give either --text or --data")
    if flags.out is not None:
        _check_out(flags.out)
    from graftwork.tasks import Signature, predict

    delta = load_delta(flags.delta)
    signature = Signature.from_json(delta.signature)
    table = _rows(flags, signature)
    base = load_base(flags.delta, delta, flags.base, flags.device)
    lines = _lines(table, signature, predict(base, delta, table, flags.batch_size))
    if flags.out is not None:
        _write(flags.out, lines)
    if flags.json:
        emit({"delta": str(flags.delta), "base": base.name, "predictions": lines})
    elif flags.out is None:
        _show(lines)


def _check_out(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {str(path.parent)!r}; make it first")
    if path.is_dir():
        file = path / "predictions.jsonl"
        raise InputError(f"--out {path} is a folder; name a file, such as {file}")


def _rows(flags: Flags, signature: Signature) -> Table:
    from graftwork.tasks import Table

    if flags.data is not None:
        return read_rows(flags.data, flags.columns, header=flags.header, labelled=False)
    names = signature.fields
    if signature.array is not None:
        raise InputError("the delta reads arrays or pictures: give them with --data")
    if len(flags.text) % len(names):
        raise InputError(
            f"the delta reads {len(names)} texts a row ({', '.join(names)}), so {len(flags.text)} "
            "--text do not part evenly"
        )
    columns: dict[str, list[Any]] = {
        name: list(flags.text[i :: len(names)]) for i, name in enumerate(names)
    }
    if signature.language is not None and signature.language.form == "messages":
        columns = {
            name: [[{"role": "user", "content": text}] for text in texts]
            for name, texts in columns.items()
        }
    return Table(columns, "--text")


def _lines(
    table: Table, signature: Signature, predictions: Sequence[Prediction]
) -> list[dict[str, Any]]:
    from graftwork.tasks import SEQUENCES

    # Pictures are told by the names of their files.
    by_name = signature.array is not None and "file" in table
    inputs = table.select((*signature.fields, "file") if by_name else signature.fields)
    lists = signature.kind in SEQUENCES
    lines: list[dict[str, Any]] = []
    for record, found in zip(inputs.records(), predictions, strict=True):
        shown = {k: v for k, v in record.items() if isinstance(v, (str, int, float)) or lists}
        lines.append({"inputs": shown, **_said(found)})
    return lines


def _said(found: Prediction) -> dict[str, Any]:
    """Return what a prediction says, without what its kind of task does not have."""
    said = {key: value for key, value in asdict(found).items() if value is not None}
    if "value" in said:
        del said["values"]
    return said


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    part = path.with_name(f".part-{path.name}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}; free space or choose another file"
        ) from error
    err().print(f"{len(lines):,} predictions: {path}")


def _show(lines: Sequence[Mapping[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    cells = [_cells(line) for line in lines[:SHOWN]]
    table = Table(*map(escape, [*lines[0]["inputs"], *cells[0]]))
    for line, found in zip(lines, cells, strict=False):
        table.add_row(*(escape(_shown(v)) for v in (*line["inputs"].values(), *found.values())))
    out().print(table)
    if len(lines) > SHOWN:
        out().print(
            f"... and {len(lines) - SHOWN:,} more: --out FILE or --json gives all", style="dim"
        )


def _shown(value: Any) -> str:
    """Return an input for people: words with spaces between, messages by their contents."""
    if not isinstance(value, list | tuple):
        return str(value)
    return " ".join(str(v["content"] if isinstance(v, Mapping) else v) for v in value)


def _cells(line: Mapping[str, Any]) -> dict[str, str]:
    """Return column -> text of one row's prediction: one column for each target or number."""
    if "label" in line:
        return {"label": line["label"], "score": f"{line['scores'][line['label']]:.3f}"}
    if "text" in line:
        return {"text": line["text"]}
    if "labels" in line and "scores" not in line:
        return {"labels": " ".join(label or "-" for label in line["labels"])}
    if "value" in line:
        return {"value": f"{line['value']:.4g}"}
    if "vector" in line:
        return {str(i): f"{value:.4g}" for i, value in enumerate(line["vector"])}
    return {name: f"{value:.4g}" for name, value in (line.get("values") or line["scores"]).items()}
