"""Reading the table of a delta file and its byte streams, strictly; the inverse of `_writer.py`.

What the table announces is added up and compared with the bytes that are there before anything is
allocated, so memory is bounded by the size of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from graftwork._errors import DeltaError, DeltaFileError
from graftwork.deltas._codec import RiceCode, RunCode, decode, low_size
from graftwork.deltas._delta import Delta, Fingerprint, TensorPrint
from graftwork.deltas._quantise import FLOATS, block_count
from graftwork.deltas._seeded import MASK_VERSION, seeded_positions
from graftwork.deltas._terms import Int8Blocks, LowRank, Port, SeededMask, Sparse, Stored, Update
from graftwork.deltas._valid import check_shape
from graftwork.deltas._writer import positions_checksum

_DTYPES = {**FLOATS, "int64": torch.int64}
"""Types of plain tensors; int64 only at ports (counters)."""

T = TypeVar("T")


class Plan:
    """The streams that a table announces, matched with the bytes that are there."""

    def __init__(self) -> None:
        self._wanted: list[tuple[int, int]] = []
        self._views: dict[int, memoryview] = {}

    def want(self, width: int, items: int) -> Callable[[], memoryview]:
        """Announce a stream; the result gives its bytes once `bind` was called."""
        index = len(self._wanted)
        self._wanted.append((width, width * items))
        return lambda: self._views[index]

    def bind(self, body: memoryview) -> None:
        """Cut `body` into the announced streams.

        Raises:
            DeltaFileError: it is longer or shorter than announced.
        """
        total = sum(size for _, size in self._wanted)
        if total != len(body):
            raise DeltaFileError(
                f"the table announces {total} bytes of data, {len(body)} are there"
            )
        at = 0
        for index in sorted(range(len(self._wanted)), key=lambda i: -self._wanted[i][0]):
            size = self._wanted[index][1]
            self._views[index] = body[at : at + size]
            at += size


class Record:
    """A JSON object that is read strictly: every field is expected, of its type, and used."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise DeltaFileError(f"{where} must be an object, got {_short(value)}")
        self.where = where
        self._left = dict(value)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return and use up the field `key`; required unless there is a default."""
        if key not in self._left:
            if default is None:
                raise DeltaFileError(f"{self.where} has no field {key!r}")
            return default
        value = self._left.pop(key)
        if type(value) is not kind:
            raise DeltaFileError(f"{self.where}.{key} must be {kind.__name__}, got {_short(value)}")
        return value

    def size(self, key: str) -> int:
        """Return a whole number that is not negative."""
        return _size(self.take(key, int), f"{self.where}.{key}")

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a shape."""
        shape = tuple(self.take(key, list))
        try:
            check_shape(shape)
        except DeltaError as error:
            raise DeltaFileError(f"{self.where}: {error}") from None
        return shape

    def close(self) -> None:
        """Check that no field is left over."""
        if self._left:
            raise DeltaFileError(
                f"{self.where} has the unknown field {min(self._left)!r}; "
                "a newer graftwork may have written it"
            )


def read_delta(header: object, body: memoryview) -> Delta:
    """Return the delta of a parsed header and its streams; the inverse of `describe`.

    Raises:
        DeltaFileError: the table is not valid or does not agree with the bytes.
    """
    record, plan = Record("header", header), Plan()
    entries = [
        _read_tensor(Record(f"tensors[{i}]", entry), plan)
        for i, entry in enumerate(record.take("tensors", list, []))
    ]
    names = [name for name, _, _ in entries]
    if len(set(names)) < len(names):
        raise DeltaFileError("two entries of the table have the same name")
    ports = {
        name: _read_port(Record(f"port {name!r}", port), plan)
        for name, port in record.take("ports", dict, {}).items()
    }
    signature, processing = record.take("signature", dict, {}), record.take("processing", dict, {})
    provenance, extra = record.take("provenance", dict, {}), record.take("extra", dict, {})
    if not all(isinstance(value, str) for value in processing.values()):
        raise DeltaFileError(f"processing must hold texts, got {_short(processing)}")
    asserted = record.take("asserted", bool, False)
    record.close()
    plan.bind(body)
    return Delta(
        updates={name: update() for name, update, _ in entries if update is not None},
        ports={name: port() for name, port in ports.items()},
        signature=signature,
        fingerprint=Fingerprint(
            {name: made() for name, _, made in entries if made is not None}, processing, asserted
        ),
        provenance=provenance,
        extra=extra,
    )


def _read_tensor(
    record: Record, plan: Plan
) -> tuple[str, Callable[[], Update] | None, Callable[[], TensorPrint] | None]:
    name, shape = record.take("name", str), record.shape("shape")
    record.where = f"tensor {name!r}"
    made = _read_print(record, shape, plan) if "print" in record else None
    terms: dict[str, Callable[[], Any]] = {}
    if "sparse" in record:
        sparse = Record(f"{record.where}.sparse", record.take("sparse", dict))
        terms["sparse"] = _read_sparse(sparse, name, math.prod(shape), plan)
    if "low_rank" in record:
        low_rank = Record(f"{record.where}.low_rank", record.take("low_rank", dict))
        terms["low_rank"] = _read_low_rank(low_rank, shape, plan)
    if "dense" in record:
        terms["dense"] = _read_stored(record, "dense", shape, plan)
    if "scale" in record:
        scale = Record(f"{record.where}.scale", record.take("scale", dict))
        terms["scale"] = _read_stored(scale, "stored", scale.shape("shape"), plan)
        scale.close()
    record.close()
    if not terms:
        if made is None:
            raise DeltaFileError(f"{record.where} has neither a term nor a fingerprint")
        return name, None, made
    return name, lambda: Update(shape, **{key: term() for key, term in terms.items()}), made


def _read_print(record: Record, shape: tuple[int, ...], plan: Plan) -> Callable[[], TensorPrint]:
    dtype = record.take("print", str)
    if "digest" in record:
        digest = record.take("digest", str)
        return lambda: TensorPrint(shape, dtype, digest)
    stream = plan.want(1, 8)
    return lambda: TensorPrint(shape, dtype, stream().hex())


def _read_sparse(record: Record, name: str, numel: int, plan: Plan) -> Callable[[], Sparse]:
    count = record.size("count")
    if count > numel:
        raise DeltaFileError(f"{record.where} keeps {count} of {numel} entries")
    mask: SeededMask | None = None
    if "seeded" in record:
        mask, positions = _read_seeded(record, name, count, numel, plan)
    elif "all" in record:
        if not record.take("all", bool) or count != numel:
            raise DeltaFileError(f"{record.where} keeps all entries, but {count} of {numel}")
        positions = lambda: torch.arange(numel)  # noqa: E731
    else:
        positions = _read_positions(record, count, numel, plan)
    values = _read_stored(record, "stored", (count,), plan)
    record.close()
    return lambda: Sparse(positions(), values(), mask)


def _read_seeded(
    record: Record, name: str, count: int, numel: int, plan: Plan
) -> tuple[SeededMask, Callable[[], Tensor]]:
    seeded = Record(f"{record.where}.seeded", record.take("seeded", dict))
    mask = SeededMask(
        seeded.take("seed", int), seeded.take("key", str, name), seeded.take("version", int)
    )
    seeded.close()
    if mask.version != MASK_VERSION:
        raise DeltaFileError(f"{record.where} has a mask of version {mask.version}, not known here")
    checksum = plan.want(1, 4)

    def draw() -> Tensor:
        positions = seeded_positions(mask, numel, count)
        if positions_checksum(positions.numpy()) != int.from_bytes(checksum(), "little"):
            raise DeltaFileError(
                f"{record.where}: the mask drawn from its seed is not the one that was trained"
            )
        return positions

    return mask, draw


def _read_positions(record: Record, count: int, numel: int, plan: Plan) -> Callable[[], Tensor]:
    code: Callable[[], RiceCode | RunCode]
    if "runs" in record:
        runs = Record(f"{record.where}.runs", record.take("runs", dict))
        number = runs.size("count")
        starts = _read_code(runs.take("starts", list), number, runs.where, plan)
        ends = _read_code(runs.take("ends", list), number, runs.where, plan)
        runs.close()
        code = lambda: RunCode(count, starts(), ends())  # noqa: E731
    else:
        code = _read_code(record.take("rice", list), count, record.where, plan)
    return lambda: torch.from_numpy(decode(code(), numel))


def _read_code(value: list[Any], count: int, where: str, plan: Plan) -> Callable[[], RiceCode]:
    if len(value) != 2:
        raise DeltaFileError(f"{where}: a position code has two numbers, got {_short(value)}")
    low, high_size = (_size(item, f"{where} position code") for item in value)
    high, lows = plan.want(1, high_size), plan.want(1, low_size(count, low))
    return lambda: RiceCode(count, low, high(), lows())


def _read_low_rank(record: Record, shape: tuple[int, ...], plan: Plan) -> Callable[[], LowRank]:
    rank, factor = record.size("rank"), record.take("factor", float)
    if not shape or 0 in shape:
        raise DeltaFileError(f"{record.where}: shape {shape} is no matrix")
    left_shape: tuple[int, ...] = (shape[0], rank)
    right_shape: tuple[int, ...] = (rank, math.prod(shape[1:]))
    if "batched" in record:
        if not record.take("batched", bool) or len(shape) < 3:
            raise DeltaFileError(f"{record.where}: shape {shape} is no stack of matrices")
        left_shape = (*shape[:2], rank)
        right_shape = (shape[0], rank, math.prod(shape[2:]))
    left = _read_stored(record, "left", left_shape, plan)
    right = _read_stored(record, "right", right_shape, plan)
    record.close()
    return lambda: LowRank(left(), right(), factor)


def _read_port(record: Record, plan: Plan) -> Callable[[], Port]:
    kind, config = record.take("kind", str), record.take("config", dict)
    tensors: dict[str, Callable[[], Stored]] = {}
    for entry in record.take("tensors", list):
        tensor = Record(f"{record.where} tensor", entry)
        name = tensor.take("name", str)
        if name in tensors:
            raise DeltaFileError(f"{record.where} has two tensors {name!r}")
        tensors[name] = _read_stored(tensor, "stored", tensor.shape("shape"), plan, integers=True)
        tensor.close()
    record.close()
    return lambda: Port(kind, config, {name: tensor() for name, tensor in tensors.items()})


def _read_stored(
    record: Record, key: str, shape: tuple[int, ...], plan: Plan, *, integers: bool = False
) -> Callable[[], Stored]:
    name, numel = record.take(key, str), math.prod(shape)
    if name == "int8":
        scales = plan.want(2, block_count(numel))
        codes = plan.want(1, numel)
        return lambda: Int8Blocks(
            _tensor(codes(), torch.int8, (numel,)), _tensor(scales(), torch.bfloat16, (-1,)), shape
        )
    if name not in _DTYPES or (name == "int64" and not integers):
        raise DeltaFileError(f"{record.where}.{key}: {name!r} is not a stored type")
    dtype = _DTYPES[name]
    stream = plan.want(dtype.itemsize, numel)
    return lambda: _tensor(stream(), dtype, shape)


def _tensor(stream: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    width = dtype.itemsize
    bits = np.frombuffer(stream, dtype=f"<i{width}").astype(f"=i{width}")
    return torch.from_numpy(bits).view(dtype).reshape(shape)


def _size(value: object, where: str) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise DeltaFileError(f"{where} must be a size, got {_short(value)}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
