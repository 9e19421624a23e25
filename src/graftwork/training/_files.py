"""Files and folders that are either whole or absent, also when the disk is full or power fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graftwork._errors import StorageError

TEMPORARY = ".part-"
"""Prefix of names that are being written; what a crash leaves behind starts with it."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old or the new text, never a part.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(f"{TEMPORARY}{path.name}")
    with storing(f"write {path}"):
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` at the end, or vanishes on an error.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(f"{TEMPORARY}{path.name}")
    with storing(f"write {path}"):
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            yield part
            for file in part.iterdir():
                _sync(file)
            remove(path)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a folder so that a crash in between leaves only a temporary name."""
    if path.exists():
        gone = path.with_name(f"{TEMPORARY}gone-{path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a crash left half-written in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn what the operating system says into a StorageError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot {what}: {error}; free space or choose another folder"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power failure."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
