import dataclasses
import errno
import json
import os
import struct

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.deltas.strategies import same_delta, whole_deltas

from graftwork import deltas
from graftwork._errors import DeltaError, DeltaFileError, StorageError
from graftwork.deltas import (
    Delta,
    Fingerprint,
    Int8Blocks,
    LowRank,
    Port,
    SeededMask,
    Sparse,
    TensorPrint,
    Update,
)

# run-time type checkers look at random items, also while strategies draw
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside")


def small(values=(0.5, -2.0), positions=(1, 5), **fields):
    sparse = Sparse(torch.tensor(positions), torch.tensor(values).half())
    return Delta({"w": Update((2, 3), sparse=sparse)}, **fields)


@given(whole_deltas())
def test_any_delta_comes_back_bit_for_bit(delta):
    data = deltas.dumps(delta)
    back = deltas.loads(data)
    assert same_delta(delta, back)
    assert deltas.dumps(back) == data
    assert deltas.content_hash(back) == deltas.content_hash(delta)


@settings(max_examples=30)
@given(whole_deltas())
def test_order_of_insertion_does_not_matter(delta):
    turned = dataclasses.replace(
        delta,
        updates=dict(reversed(delta.updates.items())),
        ports=dict(reversed(delta.ports.items())),
        provenance=dict(reversed(delta.provenance.items())),
    )
    assert deltas.dumps(turned) == deltas.dumps(delta)
    assert deltas.content_hash(turned) == deltas.content_hash(delta)


def test_the_container_opens_with_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    size = deltas.save(small(), path)
    assert size == path.stat().st_size
    assert list(safetensors.torch.load_file(path)) == ["delta"]
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "graftwork.delta", "version": "1"}
        assert opened.get_tensor("delta").dtype == torch.uint8


def test_a_file_saved_again_by_safetensors_still_loads():
    # that library may order and pad its header in another way
    data = deltas.dumps(small())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    turned = json.dumps(dict(reversed(header.items())), indent=1).encode()
    again = struct.pack("<Q", len(turned)) + turned + data[8 + length :]
    assert same_delta(deltas.loads(again), small())


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": {"seed": 1}},
        {"signature": {"kind": "classification"}},
        {"extra": {"note": ""}},
        {"fingerprint": Fingerprint({}, {"pooling": "mean"})},
        {"fingerprint": Fingerprint({}, asserted=True)},
        {"fingerprint": Fingerprint({"w": TensorPrint((2, 3), "float32", "0" * 16)})},
        {"ports": {"head": Port("head", {}, {"w": torch.zeros(1)})}},
        {"updates": small(positions=(1, 4)).updates},
        {"updates": small(values=(0.5, 2.0)).updates},
        {"updates": {"v": small().updates["w"]}},
    ],
)
def test_content_hash_sees_every_field(change):
    changed = dataclasses.replace(small(), **change)
    assert deltas.content_hash(changed) != deltas.content_hash(small())


def test_a_head_only_delta_and_an_empty_one():
    head = Port("head", {"in_features": 2}, {"weight": torch.ones(3, 2), "n": torch.tensor(7)})
    for delta in (Delta({}, ports={"head": head}), Delta({})):
        assert same_delta(deltas.loads(deltas.dumps(delta)), delta)


def test_all_positions_and_seeded_masks_take_no_bytes():
    def size(**term):
        sparse = Sparse(values=torch.ones(5000, dtype=torch.float16), **term)
        return len(deltas.dumps(Delta({"w": Update((50, 100), sparse=sparse)})))

    def size_of_seeded():
        mask = SeededMask(1, "w")
        positions = deltas.seeded_positions(mask, 1_000_000, 5000)
        sparse = Sparse(positions, torch.ones(5000, dtype=torch.float16), mask)
        return len(deltas.dumps(Delta({"w": Update((1000, 1000), sparse=sparse)})))

    assert size(positions=torch.arange(5000)) < 10_000 + 320
    assert size_of_seeded() < 10_000 + 320


def one_tensor(stored, count=5000):
    """The delta of the size bar: a fingerprint, and provenance as of a small run."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randperm(1_000_000, generator=generator)[:count].sort().values
    values = torch.randn(count, generator=generator) * 0.01
    name = "encoder.layer.0.attention.self.query.weight"
    return Delta(
        {name: Update((1000, 1000), sparse=Sparse(positions, deltas.quantise(values, stored)))},
        fingerprint=Fingerprint(
            {name: TensorPrint((1000, 1000), "float32", "53aa51172d142c89")},
            {"tokenizer": "d9012cce15ae4d6c", "pooling": "mean", "max_length": "128"},
        ),
        provenance={"method": "diff_pruning", "seed": 0, "steps": 500, "data": "8b1a9953c4611296"},
    )


@pytest.mark.parametrize(("stored", "bar"), [("float16", 3.25), ("int8", 2.25)])
def test_bytes_per_kept_value_all_in(stored, bar):
    assert len(deltas.dumps(one_tensor(stored))) / 5000 <= bar


def test_arrays_are_aligned():
    delta = Delta(
        {"w": Update((2, 3), dense=torch.ones(2, 3, dtype=torch.float64))},
        ports={"head": Port("head", {}, {"b": torch.full((3,), 2.0)})},
    )
    data = deltas.dumps(delta)
    assert data.index(struct.pack("<d", 1.0)) % 8 == 0
    assert data.index(struct.pack("<f", 2.0)) % 4 == 0


def unchecked():
    """A fingerprint whose processing was changed behind the back of any type checker."""
    processing = {"max_length": "128"}
    fingerprint = Fingerprint({}, processing)
    processing["max_length"] = 128
    return fingerprint


BAD = {
    "positions must increase": small(positions=(5, 1)),
    "positions must lie in": small(positions=(1, 6)),
    r"positions must be \(k,\) int64": Delta(
        {"w": Update((6,), sparse=Sparse(torch.tensor([1], dtype=torch.int32), torch.ones(1)))}
    ),
    r"sparse values must have shape \(2,\)": small(values=(1.0,)),
    "hold NaN or infinity": small(values=(1.0, float("nan"))),
    "torch.int32 is not a stored type": Delta(
        {"w": Update((1,), dense=torch.ones(1, dtype=torch.int32))}
    ),
    "drop the mask": Delta(
        {"w": Update((6,), sparse=Sparse(torch.arange(2), torch.ones(2), SeededMask(1, "w")))}
    ),
    "mask of version 2": Delta(
        {"w": Update((6,), sparse=Sparse(torch.arange(2), torch.ones(2), SeededMask(0, "w", 2)))}
    ),
    r"dense must have shape \(3,\)": Delta({"w": Update((3,), dense=torch.ones(2))}),
    "does not broadcast": Delta({"w": Update((3, 4), scale=torch.ones(3))}),
    "left factor must": Delta(
        {"w": Update((3, 4), low_rank=LowRank(torch.ones(3, 0), torch.ones(0, 4)))}
    ),
    r"right factor must have shape \(1, 4\)": Delta(
        {"w": Update((3, 4), low_rank=LowRank(torch.ones(3, 1), torch.ones(1, 5)))}
    ),
    "needs a matrix": Delta(
        {"w": Update((), low_rank=LowRank(torch.ones(1, 1), torch.ones(1, 1)))}
    ),
    "factor nan": Delta(
        {"w": Update((1, 1), low_rank=LowRank(torch.ones(1, 1), torch.ones(1, 1), float("nan")))}
    ),
    "codes must be": Delta(
        {"w": Update((2,), dense=Int8Blocks(torch.zeros(3, dtype=torch.int8), torch.ones(1), (2,)))}
    ),
    "scales must be": Delta(
        {"w": Update((2,), dense=Int8Blocks(torch.zeros(2, dtype=torch.int8), torch.ones(1), (2,)))}
    ),
    "negative scale": Delta(
        {
            "w": Update(
                (1,),
                dense=Int8Blocks(
                    torch.ones(1, dtype=torch.int8), -torch.ones(1, dtype=torch.bfloat16), (1,)
                ),
            )
        }
    ),
    "more than 2\\^60 entries": Delta(
        {"w": Update((2**31, 2**31), sparse=small().updates["w"].sparse)}
    ),
    "fingerprint of 'w' has shape": small(
        fingerprint=Fingerprint({"w": TensorPrint((3,), "float32", "")})
    ),
    "provenance is not plain JSON": small(provenance={"loss": float("nan")}),
    r"signature.labels has the key 3": small(signature={"labels": {3: "three"}}),
    "a port name must be text": small(ports={"": Port("head", {}, {})}),
    r"port 'head': config is not plain JSON": small(ports={"head": Port("head", {"a": {1}}, {})}),
    r"processing\['max_length'\] must be text": small(fingerprint=unchecked()),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_not_well_formed_is_never_written(message, tmp_path):
    with pytest.raises(DeltaError, match=message):
        deltas.save(BAD[message], tmp_path / "bad.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DeltaFileError, match=r"none\.safetensors cannot be read: No such file"):
        deltas.load(tmp_path / "none.safetensors")
    with pytest.raises(DeltaFileError, match="cannot be read"):
        deltas.load(tmp_path)
    with pytest.raises(StorageError, match=r"cannot write .*: No such file"):
        deltas.save(small(), tmp_path / "no" / "folder.safetensors")


def test_load_names_the_file(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"lora_A.weight": torch.ones(2)}, path)
    with pytest.raises(DeltaFileError, match=r"foreign\.safetensors: a safetensors file, but not"):
        deltas.load(path)


def test_a_newer_version_is_told(tmp_path):
    data = deltas.dumps(small()).replace(b'"version":"1"', b'"version":"2"')
    with pytest.raises(DeltaFileError, match=r"file version .2.; .* upgrade graftwork"):
        deltas.loads(data)


class FullDisk:
    """A file whose writes fail after some bytes, as on a full disk."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()

    def write(self, data):
        self.file.write(data[:100])
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.ENOSPC, "the disk is full; .* bytes are needed, .*; free space or choose another"),
        (errno.EIO, r"cannot write .* bytes\): .*; free space or choose another folder"),
    ],
)
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, error, message):
    path = tmp_path / "a.safetensors"
    deltas.save(small(), path)
    before = path.read_bytes()
    opened = type(path).open
    monkeypatch.setattr(type(path), "open", lambda self, mode: FullDisk(opened(self, mode), error))
    with pytest.raises(StorageError, match=message) as caught:
        deltas.save(small(values=(1.0, 2.0)), path)
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before


def test_a_failed_rename_or_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    for error, expected in [
        (OSError(errno.EACCES, "no"), StorageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ]:

        def fail(self, target, error=error):
            raise error

        monkeypatch.setattr(type(tmp_path), "replace", fail)
        with pytest.raises(expected):
            deltas.save(small(), tmp_path / "a.safetensors")
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []


def test_save_replaces_and_respects_the_umask(tmp_path):
    path = tmp_path / "a.safetensors"
    deltas.save(small(), path)
    deltas.save(small(values=(3.0, 4.0)), path)
    assert deltas.load(path).updates["w"].sparse.values.tolist() == [3.0, 4.0]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


@given(st.binary(max_size=3000))
def test_large_repetitive_provenance_is_no_bomb(noise):
    delta = small(provenance={"log": "x" * 200_000, "noise": noise.hex()})
    assert same_delta(deltas.loads(deltas.dumps(delta)), delta)


def test_values_on_another_device_or_with_gradient_are_saved():
    values = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    delta = Delta({"w": Update((2, 3), sparse=Sparse(torch.tensor([0, 4]), values))})
    assert deltas.loads(deltas.dumps(delta)).updates["w"].sparse.values.tolist() == [1.0, 2.0]
