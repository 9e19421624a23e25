"""One delta, one file: a safetensors container, a checksum, a compressed table, byte streams.

`docs/file-format.md` describes every byte. The container opens with any safetensors reader as one
U8 tensor named "delta"; nothing in it is executable and nothing is pickled (law 11). The same
delta gives the same bytes (law 10).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import struct
import zlib
from pathlib import Path
from typing import Any, NoReturn

from graftwork._errors import DeltaError, DeltaFileError, StorageError
from graftwork.deltas._delta import Delta
from graftwork.deltas._reader import read_delta
from graftwork.deltas._valid import canonical_json, validate
from graftwork.deltas._writer import describe, lay_out

FORMAT, VERSION = "graftwork.delta", "1"

_PREAMBLE = struct.Struct("<16sII")
"""Checksum of all that follows it, bytes of the packed table, bytes of the plain one."""

_CHECKSUM = 16
_ALIGN = 8
_OUTER_MAX = 4096
"""A safetensors header of ours is 130 bytes; a longer one belongs to another format."""

_TABLE_RATIO, _TABLE_MAX = 16, 2**26
"""A packed table may unpack to at most 16 times the file and 64 MiB."""


def save(delta: Delta, path: str | os.PathLike[str]) -> int:
    """Write a delta to one file, all of it or nothing.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name
    `path` in one step, so that a crash or a full disk leaves what was there before.

    Arguments:
        delta: any valid delta.
        path: customarily `*.safetensors`; an existing file is replaced.

    Returns:
        The size of the file in bytes.

    Raises:
        DeltaError: the delta is not well-formed (see `dumps`).
        StorageError: the disk is full, or the folder is missing or not writable.
    """
    data = dumps(delta)
    target = Path(path)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _storage_error(error, target, len(data)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return len(data)


def load(path: str | os.PathLike[str]) -> Delta:
    """Read a delta file, strictly.

    Raises:
        DeltaFileError: the file cannot be read, or is truncated, foreign, tampered with or newer.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DeltaFileError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
    try:
        return loads(data)
    except DeltaFileError as error:
        raise DeltaFileError(f"{os.fspath(path)}: {error}") from None


def dumps(delta: Delta) -> bytes:
    """Return the bytes of a delta file.

    Raises:
        DeltaError: the delta is not well-formed: positions out of order or range, shapes that do
            not fit, NaN or infinite values, fields that JSON cannot hold.

    Example:
        >>> import torch
        >>> from graftwork.deltas import Sparse, Update
        >>> sparse = Sparse(torch.tensor([1, 5]), torch.tensor([0.5, -2.0]).half())
        >>> data = dumps(Delta({"weight": Update((2, 3), sparse=sparse)}))
        >>> loads(data).updates["weight"].sparse.positions
        tensor([1, 5])
    """
    validate(delta)
    table, blobs = describe(delta)
    plain = canonical_json(table, "delta")
    body = lay_out(blobs)
    packed = zlib.compress(plain, 9)
    if len(packed) >= len(plain) or len(plain) > _TABLE_RATIO * (len(packed) + len(body)):
        packed = plain
    if len(plain) > _TABLE_MAX:
        raise DeltaError(f"the table of this delta takes {len(plain)} bytes, at most {_TABLE_MAX}")
    rest = struct.pack("<II", len(packed), len(plain)) + packed
    rest += bytes(-len(rest) % _ALIGN) + body
    return _outer_header(_CHECKSUM + len(rest)) + _checksum(rest) + rest


def loads(data: bytes | bytearray | memoryview) -> Delta:
    """Return the delta in the bytes of a delta file; the inverse of `dumps`, bit for bit.

    Memory stays within a fixed multiple of `len(data)`, whatever the bytes say.

    Raises:
        DeltaFileError: the bytes are truncated, foreign, tampered with or of a newer version.
    """
    inner = _open_outer(memoryview(data).cast("B"))
    if len(inner) < _PREAMBLE.size:
        raise DeltaFileError("truncated: the preamble is not complete")
    checksum, packed_size, plain_size = _PREAMBLE.unpack_from(inner)
    if checksum != _checksum(inner[_CHECKSUM:]):
        raise DeltaFileError("the checksum does not match: the file is damaged or was changed")
    start = _PREAMBLE.size
    body_start = start + packed_size + -(packed_size + start) % _ALIGN
    if body_start > len(inner):
        raise DeltaFileError("the table is longer than the file")
    if any(inner[start + packed_size : body_start]):
        raise DeltaFileError("the gap after the table is not zero")
    plain = _unpack(inner[start : start + packed_size], plain_size, len(inner))
    try:
        delta = read_delta(_parse(plain, "table"), inner[body_start:])
        validate(delta, redraw=False)
    except DeltaFileError:
        raise
    except DeltaError as error:
        raise DeltaFileError(str(error)) from None
    return delta


def content_hash(delta: Delta) -> str:
    """Return the SHA-256, 64 hex digits, of everything a delta says.

    It does not depend on how positions are coded or tables compressed, so it outlives file
    versions. Deltas that differ in provenance alone differ in hash.

    Raises:
        DeltaError: the delta is not well-formed.
    """
    validate(delta)
    table, blobs = describe(delta)
    for entry in table.get("tensors", ()):
        for coding in ("rice", "runs", "all"):
            entry.get("sparse", {}).pop(coding, None)
    digest = hashlib.sha256(b"graftwork.content/1")
    chunks = [canonical_json(table, "delta")]
    for name in sorted(delta.updates):
        sparse = delta.updates[name].sparse
        if sparse is not None and sparse.mask is None:
            chunks.append(sparse.positions.cpu().numpy().astype("<i8", copy=False).tobytes())
    chunks += [blob.data for blob in blobs if blob.part != "positions"]
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def _outer_header(size: int) -> bytes:
    tensor = {"data_offsets": [0, size], "dtype": "U8", "shape": [size]}
    header = {"__metadata__": {"format": FORMAT, "version": VERSION}, "delta": tensor}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGN)
    return struct.pack("<Q", len(text)) + text


def _open_outer(view: memoryview) -> memoryview:
    """Return the data of the one tensor in a safetensors container of ours."""
    if len(view) < 8:
        raise DeltaFileError(f"not a delta file: only {len(view)} bytes")
    length = int.from_bytes(view[:8], "little")
    if not 2 <= length <= len(view) - 8 or view[8] != ord("{"):
        raise DeltaFileError("not a delta file, or truncated: no safetensors header")
    if length > _OUTER_MAX:
        _foreign("its header is too long")
    header = _parse(bytes(view[8 : 8 + length]), "safetensors header")
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        _foreign(f'its metadata does not say "format": "{FORMAT}"')
    if metadata.get("version") != VERSION:
        raise DeltaFileError(
            f"file version {str(metadata.get('version'))[:20]!r}; this graftwork reads version "
            f"{VERSION}: upgrade graftwork to read a newer file"
        )
    size = len(view) - 8 - length
    tensor = {"data_offsets": [0, size], "dtype": "U8", "shape": [size]}
    if header != {"__metadata__": {"format": FORMAT, "version": VERSION}, "delta": tensor}:
        raise DeltaFileError(f"truncated or changed: the header does not describe {size} bytes")
    return view[8 + length :]


def _foreign(why: str) -> NoReturn:
    raise DeltaFileError(f"a safetensors file, but not a graftwork delta: {why}")


def _unpack(packed: memoryview, plain_size: int, inner_size: int) -> bytes:
    if plain_size == len(packed):
        return bytes(packed)
    if plain_size > min(_TABLE_RATIO * inner_size, _TABLE_MAX):
        raise DeltaFileError(
            f"the table would unpack to {plain_size} bytes, too many for this file"
        )
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(packed, plain_size + 1)
    except zlib.error as error:
        raise DeltaFileError(f"the table cannot be unpacked: {error}") from None
    if len(plain) != plain_size or not unpacker.eof or unpacker.unused_data:
        raise DeltaFileError(f"the table does not unpack to {plain_size} bytes")
    return plain


def _parse(text: bytes, what: str) -> Any:
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise DeltaFileError(f"the {what} is not valid JSON: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key occurs twice")
    return mapping


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECKSUM]


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where folders can be synced."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _storage_error(error: OSError, target: Path, size: int) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"cannot write {target}: the disk is full; {size} bytes are needed, nothing was left; "
            "free space or choose another folder"
        )
    return StorageError(
        f"cannot write {target} ({size} bytes): {error.strerror}; free space or choose another "
        "folder"
    )
