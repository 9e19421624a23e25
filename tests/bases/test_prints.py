"""Digests and their cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from graftwork._errors import BaseError
from graftwork.bases import print_of
from graftwork.bases._prints import cache_folder, cached, file_prints, file_sha256

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(6, dtype=torch.float32).reshape(3, 2),
    "c": torch.tensor(2.5, dtype=torch.bfloat16),
    "d": torch.zeros(0, 4, dtype=torch.float16),
    "e": torch.tensor([True, False]),
    "f": torch.arange(5),
}


def test_print_is_sha256_over_type_shape_and_little_endian_bytes() -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    expected = hashlib.sha256(b"float32|2,3|" + data).hexdigest()[:16]
    found = print_of(TENSORS["a"])
    assert (found.shape, found.dtype, found.digest) == ((2, 3), "float32", expected)


def test_prints_tell_type_shape_and_order_apart() -> None:
    a = TENSORS["a"]
    variants = [a, a.double(), a.reshape(3, 2), a.reshape(6), a.T, a + 1e-6]
    assert len({print_of(v).digest for v in variants}) == len(variants)
    assert print_of(a.T) == print_of(a.T.contiguous())
    assert print_of(torch.tensor([0.0])) != print_of(torch.tensor([-0.0]))


def test_file_prints_equal_live_prints(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    assert file_prints(path) == {name: print_of(t) for name, t in TENSORS.items()}
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_cache_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    first = file_prints(path)
    save_file({"a": torch.ones(3)}, path)
    assert file_prints(path) != first


def test_cache_is_used_and_survives_damage(cache: Path) -> None:
    calls = []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"x": len(calls)}

    assert cached("k", [1], compute) == {"x": 1}
    assert cached("k", [1], compute) == {"x": 1}
    assert cached("k", [2], compute) == {"x": 2}
    (entry,) = [p for p in cache.glob("bases/*") if '"x": 1' in p.read_text()]
    for damage in ("", "{", "[]", '{"body": {"x": 9}, "digest": "0"}', entry.read_text()[:-9]):
        entry.write_text(damage)
        assert cached("k", [1], compute)["x"] == len(calls)
        assert len(list(cache.glob("bases/*"))) == 2
    assert len(calls) == 7


def test_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "occupied"))
    assert cached("k", [], lambda: {"x": 1}) == {"x": 1}


def test_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFTWORK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == Path("/somewhere/graftwork")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "graftwork")
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/local/graftwork/cache")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\xff" * 64,
        (10).to_bytes(8, "little") + b"not json!!",
        (2).to_bytes(8, "little") + b"[]",
        (24).to_bytes(8, "little") + b'{"a": {"dtype": "F32" }}',
        (60).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ',
    ],
)
def test_foreign_files_are_base_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(BaseError):
        file_prints(path)
