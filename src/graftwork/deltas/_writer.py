"""Writing the table of a delta file, and the byte streams that it announces."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork.deltas._codec import RiceCode, RunCode, encode
from graftwork.deltas._delta import Delta, TensorPrint
from graftwork.deltas._quantise import stored_name
from graftwork.deltas._terms import Int8Blocks, Port, Sparse, Stored, Update

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
_DIGEST = re.compile(r"[0-9a-f]{16}")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Blob:
    """One byte stream of a file.

    Attributes:
        width: bytes of an item; wide items come first in the file, so that all are aligned.
        data: the bytes, little-endian.
        part: "positions", "values", "ports" or "prints".
        owner: the parameter or port it belongs to.
    """

    width: int
    data: bytes
    part: str
    owner: str


def lay_out(blobs: list[Blob]) -> bytes:
    """Return the streams in file order: by falling width, then in the order of the table."""
    return b"".join(blob.data for blob in sorted(blobs, key=lambda blob: -blob.width))


def describe(delta: Delta) -> tuple[Json, list[Blob]]:
    """Return the header and the streams of a valid delta, in the order of the table."""
    blobs: list[Blob] = []
    prints = delta.fingerprint.tensors
    header: Json = {
        "tensors": [
            _describe_tensor(name, delta.updates.get(name), prints.get(name), blobs)
            for name in sorted({*delta.updates, *prints})
        ],
        "ports": {
            name: _describe_port(name, delta.ports[name], blobs) for name in sorted(delta.ports)
        },
        "signature": dict(delta.signature),
        "processing": dict(delta.fingerprint.processing),
        "asserted": delta.fingerprint.asserted,
        "provenance": dict(delta.provenance),
        "extra": dict(delta.extra),
    }
    return {key: value for key, value in header.items() if value}, blobs


def _describe_tensor(
    name: str, update: Update | None, tensor_print: TensorPrint | None, blobs: list[Blob]
) -> Json:
    entry: Json = {"name": name}
    if tensor_print is not None:
        entry |= {"shape": list(tensor_print.shape), "print": tensor_print.dtype}
        if _DIGEST.fullmatch(tensor_print.digest):
            blobs.append(Blob(1, bytes.fromhex(tensor_print.digest), "prints", name))
        else:
            entry["digest"] = tensor_print.digest
    if update is None:
        return entry
    entry["shape"] = list(update.shape)

    def values(stored: Stored) -> str:
        return _describe_stored(stored, "values", name, blobs)

    if update.sparse is not None:
        support = _describe_support(name, update.sparse, math.prod(update.shape), blobs)
        entry["sparse"] = {**support, "stored": values(update.sparse.values)}
    if update.low_rank is not None:
        entry["low_rank"] = {
            "factor": float(update.low_rank.factor),
            "rank": update.low_rank.rank,
            "left": values(update.low_rank.left),
            "right": values(update.low_rank.right),
        }
        if update.low_rank.batched:
            entry["low_rank"]["batched"] = True
    if update.dense is not None:
        entry["dense"] = values(update.dense)
    if update.scale is not None:
        entry["scale"] = {"shape": list(update.scale.shape), "stored": values(update.scale)}
    return entry


def _describe_port(name: str, port: Port, blobs: list[Blob]) -> Json:
    tensors = [
        {
            "name": key,
            "shape": list(port.tensors[key].shape),
            "stored": _describe_stored(port.tensors[key], "ports", name, blobs),
        }
        for key in sorted(port.tensors)
    ]
    return {"kind": port.kind, "config": dict(port.config), "tensors": tensors}


def _describe_support(name: str, sparse: Sparse, numel: int, blobs: list[Blob]) -> Json:
    positions = sparse.positions.cpu().numpy()
    count = int(positions.size)
    if sparse.mask is not None:
        checksum = positions_checksum(positions)
        blobs.append(Blob(1, checksum.to_bytes(4, "little"), "positions", name))
        mask = sparse.mask
        seed: Json = {"seed": mask.seed, "version": mask.version}
        if mask.key != name:
            seed["key"] = mask.key
        return {"count": count, "seeded": seed}
    if count == numel:
        return {"count": count, "all": True}
    code = encode(positions)
    if isinstance(code, RunCode):
        starts, ends = (_describe_code(part, name, blobs) for part in (code.starts, code.ends))
        return {
            "count": count,
            "runs": {"count": code.starts.count, "starts": starts, "ends": ends},
        }
    return {"count": count, "rice": _describe_code(code, name, blobs)}


def _describe_code(code: RiceCode, name: str, blobs: list[Blob]) -> list[int]:
    blobs.append(Blob(1, bytes(code.high), "positions", name))
    blobs.append(Blob(1, bytes(code.lows), "positions", name))
    return [code.low, len(code.high)]


def _describe_stored(stored: Stored, part: str, owner: str, blobs: list[Blob]) -> str:
    if isinstance(stored, Int8Blocks):
        blobs.append(Blob(2, tensor_bytes(stored.scales), part, owner))
        blobs.append(Blob(1, tensor_bytes(stored.codes), part, owner))
    else:
        blobs.append(Blob(stored.element_size(), tensor_bytes(stored), part, owner))
    return type_name(stored)


def type_name(stored: Stored) -> str:
    """Return the name of a stored type in the file; ports may hold int64 counters."""
    if isinstance(stored, Tensor) and stored.dtype == torch.int64:
        return "int64"
    return stored_name(stored)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the little-endian bytes of a tensor."""
    width = tensor.element_size()
    bits = tensor.detach().cpu().contiguous().reshape(-1).view(_BITS[width]).numpy()
    return bits.astype(f"<i{width}", copy=False).tobytes()


def positions_checksum(positions: NDArray[np.int64]) -> int:
    """Return the CRC-32 of positions `(k,)`, which tells a generator that drifted."""
    return zlib.crc32(positions.astype("<i8", copy=False).tobytes())
