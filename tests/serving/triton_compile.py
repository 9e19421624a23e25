"""The Triton kernels compiled to machine code for compute capability 9.0, with no GPU.

The interpreter accepts much that the compiler refuses. Launches are recorded at the sizes of real
models on `meta` tensors, which hold nothing, and compiled with the arguments they would have had.
Run by `test_triton.py` in a process of its own, since here triton must not interpret:

    python -m pytest tests/serving/triton_compile.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from graftwork.serving import _triton, _triton_kernels

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
TYPES |= {torch.int32: "*i32", torch.int64: "*i64"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass
class Recorder:
    """Stands for the module of kernels: `kernel[grid](...)` compiles and keeps the result."""

    INTERPRETED: bool = False
    built: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(_triton_kernels, name)

        def launch(grid: tuple[int, ...], *args: Any, **named: Any) -> None:
            assert all(0 < axis < 2**31 for axis in grid), grid
            self.built[name] = compiled(kernel, args, named)

        return Launcher(launch)


@dataclass
class Launcher:
    launch: Any

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **named: self.launch(grid, *args, **named)


def compiled(kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Compile as a launch with these arguments would: integers specialised on 1 and on 16."""
    options = {key: named.pop(key) for key in OPTIONS if key in named}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(named)
    attributes = {}
    for place, (parameter, value) in enumerate(zip(kernel.params, args, strict=False)):
        fixed = parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif value == 1 and not fixed:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not fixed:
                attributes[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(named, "constexpr")
    signature = {parameter.name: signature.pop(parameter.name) for parameter in kernel.params}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Recorder:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = Recorder()
    monkeypatch.setattr(_triton, "load_kernels", lambda like: made)
    return made


def inputs(count: int, groups: int, out: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    y = torch.empty(count, out, dtype=dtype, device="meta")
    x = torch.empty(count, width, dtype=dtype, device="meta")
    return [y, x, torch.empty(groups + 1, dtype=torch.int32, device="meta")]


def sparse(groups: int, out: int, entries: int, stored: torch.dtype) -> list[Tensor]:
    crow = torch.empty(groups * out + 1, dtype=torch.int32, device="meta")
    cols = torch.empty(entries, dtype=torch.int32, device="meta")
    return [crow, cols, torch.empty(entries, dtype=stored, device="meta")]


SIZES = [
    (200, 200, 4096, 4096),
    (64, 16, 768, 768),
    (4096, 16, 768, 3072),
    (7, 3, 1, 5),
    (90, 2, 5, 3),
]
"""Positions, groups, out, in: decoding, short groups, long ones, and sizes of no power of two."""


def test_these_are_compiled() -> None:
    assert not _triton_kernels.INTERPRETED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sparse(size: tuple[int, int, int, int], dtype: torch.dtype, recorder: Recorder) -> None:
    _, groups, out, width = size
    entries = max(1, groups * out * width // 200)
    _triton.add_sparse(*inputs(*size, dtype), *sparse(groups, out, entries, torch.bfloat16))
    own = recorder.built.popitem()
    crow, cols, _ = sparse(1, out, max(1, entries // groups), dtype)
    values = torch.empty(groups, cols.numel(), dtype=dtype, device="meta")
    _triton.add_shared_sparse(*inputs(*size, dtype), crow, cols, values)
    shared = recorder.built.popitem()
    for name, code in (own, shared):
        assert code.asm["cubin"], name
        if name == "columns_kernel" and out > 64:
            # x transposed is read, and y written, 16 bytes a thread.
            assert "ld.global.v4" in code.asm["ptx"]
            assert "st.global.v4" in code.asm["ptx"]


@pytest.mark.parametrize("rank", [1, 16, 70])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_low_rank(
    size: tuple[int, int, int, int], dtype: torch.dtype, rank: int, recorder: Recorder
) -> None:
    _, groups, out, width = size
    right = torch.empty(groups, rank, width, dtype=dtype, device="meta")
    left = torch.empty(groups, out, rank, dtype=dtype, device="meta")
    _triton.add_low_rank(*inputs(*size, dtype), right, left)
    assert set(recorder.built) == {"shrink_kernel", "expand_kernel"}
    for code in recorder.built.values():
        assert code.asm["cubin"]
        # What a multiprocessor of a Hopper card can give one program.
        assert code.metadata.shared <= 227 * 1024
