"""Digests of tensors and of weight files, and the small cache that makes a second load free."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import BaseError
from graftwork.deltas import Piece, TensorPrint, held_by, is_int8

CACHE_FORMAT = 1
_HEADER_LIMIT = 100_000_000
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def print_of(tensor: Tensor) -> TensorPrint:
    """Return the fingerprint of a live tensor (moved to the CPU where needed).

    Of a tensor in 8 bits it is that of its int8 values and of their scales.

    Example:
        >>> print_of(torch.zeros(2)).digest == print_of(torch.zeros(1, 2)).digest
        False
    """
    parts = held_by(tensor.detach())[:2]
    dtype = str(parts[0].dtype).removeprefix("torch.")
    return _print(dtype, tuple(tensor.shape), *map(_bytes, parts))


def print_piece(piece: Piece, parameter: Tensor) -> TensorPrint:
    """Return the fingerprint of a canonical tensor in the parameter that holds it."""
    return print_of(parameter if is_int8(parameter) else piece.of(parameter))


def _bytes(tensor: Tensor) -> memoryview:
    flat: memoryview = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return flat


def file_prints(path: Path) -> dict[str, TensorPrint]:
    """Return the fingerprint of each tensor stored in a safetensors file, cached by file identity.

    Raises:
        BaseError: the file is not a safetensors file.
    """
    entries = cached("tensors", [identity(path)], lambda: _hash_file(path))
    return {
        name: TensorPrint(tuple(shape), dtype, digest)
        for name, (dtype, shape, digest) in entries.items()
    }


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file, cached by file identity."""

    def compute() -> dict[str, Any]:
        with path.open("rb") as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    return str(cached("sha256", [identity(path)], compute)["sha256"])


def identity(path: Path) -> list[Any]:
    """Return what stands for a file's content: device, inode, size, time of change in ns."""
    info = path.stat()
    return [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns]


def cache_folder() -> Path:
    """Return `GRAFTWORK_CACHE`, or the platform's folder for caches."""
    chosen = os.environ.get("GRAFTWORK_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "graftwork" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "graftwork"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graftwork"


def cached(
    kind: str, key: Sequence[Any], compute: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return `compute()`, remembered as JSON under (kind, key).

    One small file an entry, written atomically. A cache that cannot be read or written costs time,
    never a result.
    """
    name = hashlib.sha256(json.dumps([CACHE_FORMAT, kind, *key]).encode()).hexdigest()[:40]
    path = cache_folder() / "bases" / f"{kind}-{name}.json"
    known = _read(path)
    if known is not None:
        return known
    fresh = compute()
    _write(path, fresh)
    return fresh


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        held = json.loads(path.read_bytes())
        body = held["body"]
        intact = held["digest"] == _digest_of(body)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return body if intact and isinstance(body, dict) else None


def _write(path: Path, body: Mapping[str, Any]) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            json.dump({"digest": _digest_of(body), "body": body}, file)
        temporary.replace(path)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _digest_of(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _print(dtype: str, shape: tuple[int, ...], *parts: memoryview) -> TensorPrint:
    digest = hashlib.sha256(f"{dtype}|{','.join(map(str, shape))}|".encode())
    for data in parts:
        digest.update(data)
    return TensorPrint(shape, dtype, digest.hexdigest()[:16])


def _hash_file(path: Path) -> dict[str, Any]:
    header, start = read_header(path)
    entries = {}
    with path.open("rb") as file:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            data = file.read(end - begin)
            if len(data) != end - begin:
                raise BaseError(f"{path.name} is cut short: tensor {name!r} is not complete")
            dtype = _DTYPES.get(entry["dtype"], str(entry["dtype"]))
            found = _print(dtype, tuple(entry["shape"]), memoryview(data))
            entries[name] = (dtype, list(found.shape), found.digest)
    return entries


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's entries by tensor name, and where its data begins.

    Raises:
        BaseError: the file is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end or not all(isinstance(n, int) for n in entry["shape"]):
                raise ValueError("its offsets are not in order")
            entry["dtype"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise BaseError(f"{path} is not a safetensors file: {cause}") from cause
    return header, 8 + length
