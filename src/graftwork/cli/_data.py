"""What `evaluate` and `predict` share: the delta, its base, and rows from a file or folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork._errors import InputError
from graftwork.cli._shared import existing

if TYPE_CHECKING:
    from graftwork.bases import Base
    from graftwork.deltas import Delta
    from graftwork.tasks import Table

ARRAYS = (".npy", ".npz", ".safetensors")


def load_delta(path: Path) -> Delta:
    """Return the delta in a file, or in a run's folder.

    Raises:
        InputError: there is no such file; names the closest neighbour.
        DeltaFileError: the file is no delta.
    """
    from graftwork import deltas

    existing(path, "delta")
    if path.is_dir():
        if not (path / "delta.safetensors").is_file():
            raise InputError(
                f"{path} is a folder without a delta.safetensors; is its run finished?"
            )
        path /= "delta.safetensors"
    return deltas.load(path)


def load_base(path: Path, delta: Delta, name: str | None, device: str) -> Base:
    """Return the base called `name`, by default the one that the delta was made for.

    Arguments:
        path: of the delta; the run it lies in knows the base by its whole path.
        delta: gives the base's name where it lies in no run.
        name: what the user says.
        device: where the weights go.

    Raises:
        InputError: nothing says what the base is.
    """
    from graftwork import bases, deltas
    from graftwork.training import RunFolder

    config = RunFolder(path if path.is_dir() else path.parent).config() or {}
    made_for = name or config.get("base") or delta.provenance.get("base")
    if not isinstance(made_for, str):
        raise InputError("the delta does not say what base it was made for: name it with --base")
    quantise: Any = delta.fingerprint.processing.get(deltas.QUANTISE)
    if delta.signature.get("kind") == "text":
        return bases.load_language_model(made_for, device=device, quantise=quantise)
    return bases.load(made_for, device=device, quantise=quantise)


def read_rows(
    path: Path, columns: Mapping[str, str], *, header: bool = True, labelled: bool = True
) -> Table:
    """Return the rows of a text file, a file of arrays or a folder of pictures.

    Arguments:
        path: CSV, TSV, JSONL, Parquet, .npy, .npz, .safetensors, or a folder.
        columns: name in the delta's signature -> column of the file; empty: the same names.
        header: CSV and TSV: whether the first row names the columns.
        labelled: whether a folder has one subfolder of pictures a class.
    """
    from graftwork.tasks import Table, arrays, image_folder, read

    existing(path, "data")
    if not path.is_dir() and path.suffix.lower() not in ARRAYS:
        return read(path, columns=columns or None, header=header)
    table = image_folder(path, labelled=labelled) if path.is_dir() else arrays(path)
    if not columns:
        return table
    return Table({name: table[old] for name, old in columns.items()}, table.source)
