"""Folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from graftwork._errors import StorageError


@contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write into, which takes the name `folder` when all went well.

    Raises:
        StorageError: the folder exists and is not empty, or the disk is full; nothing is left.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StorageError(f"{path} exists; name a new folder, or remove it")
    part = path.with_name(f".part-{path.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        _settle(part)
        if path.exists():
            path.rmdir()
        part.rename(path)
    except OSError as cause:
        raise StorageError(
            f"cannot write {path}: {cause}; free space, or name another folder"
        ) from (cause)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; the same tensors give the same bytes.

    Raises:
        StorageError: the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # clones: tied tensors share memory, which safetensors refuses
    held = {name: t.detach().cpu().clone().contiguous() for name, t in sorted(tensors.items())}
    try:
        save_file(held, path, metadata={"format": "pt"})
    except SafetensorError as cause:
        raise StorageError(f"cannot write {path}: {cause}; free space") from cause


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON for people and machines: sorted keys, two spaces."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def size_of(folder: str | os.PathLike[str]) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _settle(folder: Path) -> None:
    """Make the files last through a power cut."""
    for file in (*folder.rglob("*"), folder):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
