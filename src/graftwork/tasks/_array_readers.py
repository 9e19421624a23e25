"""Readers of arrays and image folders."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from graftwork._errors import InputError, UnknownNameError
from graftwork.tasks._table import Table

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def arrays(x: Any, y: Any = None) -> Table:
    """Return the table of arrays: columns "x" and, with `y`, "label".

    Args:
        x: `(N, ...)` array, tensor or list, or a file: .npy, .npz or .safetensors; the latter two
            hold arrays named "x" and, unless `y` is given, "y".
        y: `(N,)` labels or values, in any of these forms.

    Raises:
        InputError: a file of another kind (pickles such as .pt are not read), other lengths, rows
            of different shapes, or no rows.

    Example:
        >>> table = arrays([[0.0, 1.0], [2.0, 3.0]], ["off", "on"])
        >>> table["x"].shape, table["label"]
        ((2, 2), ['off', 'on'])
    """
    source = Path(x).name if isinstance(x, str | Path) else "the arrays"
    if isinstance(x, str | Path):
        named = _load(Path(x))
        if y is None:
            y = named.get("y")
        if "x" not in named:
            raise UnknownNameError(f"array of {source}:", "x", named)
        x = named["x"]
    if isinstance(y, str | Path):
        named = _load(Path(y))
        y = named["y"] if "y" in named else next(iter(named.values()))
    columns = {"x": _rectangular(x, source)} | ({} if y is None else {"label": y})
    table = Table(columns, source)
    if not len(table):
        raise InputError(f"{source} has no rows; give at least one")
    return table


def _rectangular(values: Any, source: str) -> Any:
    if not isinstance(values, list | tuple):
        return values
    rows = [np.asarray(value) for value in values]
    for number, row in enumerate(rows, 1):
        if row.shape != rows[0].shape:
            raise InputError(
                f"{source}, row {number}: shape {row.shape} differs from row 1's {rows[0].shape}; "
                "pad or cut the rows to one shape"
            )
    return np.stack(rows) if rows else []


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"the data file {path} does not exist")
    suffix = path.suffix.lower()
    try:
        if suffix in (".npy", ".npz"):
            # Opened here: NumPy leaves a broken archive open.
            with path.open("rb") as file:
                loaded = np.load(file, allow_pickle=False)
                return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        if suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
    except (OSError, ValueError, EOFError, SafetensorError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path.name}: not arrays that can be read without pickle ({error})"
        ) from error
    raise InputError(
        f"{path.name}: arrays are read from .npy, .npz and .safetensors, not {suffix!r}; pickles "
        "are refused because loading one can run any code: save it anew by safetensors"
    )


def image_folder(path: str | Path, *, labelled: bool = True) -> Table:
    """Return the table of a folder with one subfolder of pictures a class.

    Columns: "image" (the bytes of each file, decoded later by Pillow), "label" (the subfolder) and
    "file" (subfolder/name), sorted by "file".

    Args:
        path: the folder.
        labelled: False takes all pictures in it, however deep, and gives no "label".

    Raises:
        InputError: no such folder, no subfolders, or a folder without pictures.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"the image folder {path} does not exist")
    if not labelled:
        every = _pictures(path, path.rglob("*"))
        names = [file.relative_to(path).as_posix() for file in every]
        return Table({"image": [file.read_bytes() for file in every], "file": names}, path.name)
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise InputError(f"{path} has no subfolders; put the pictures of each class into one")
    images, labels, files = [], [], []
    for folder in classes:
        found = _pictures(folder, folder.iterdir())
        images += [file.read_bytes() for file in found]
        labels += [folder.name] * len(found)
        files += [f"{folder.name}/{file.name}" for file in found]
    return Table({"image": images, "label": labels, "file": files}, path.name)


def _pictures(folder: Path, files: Iterable[Path]) -> list[Path]:
    found = sorted(
        file
        for file in files
        if file.suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not found:
        raise InputError(f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return found
