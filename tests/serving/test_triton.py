"""What the GPU kernels refuse, which tiles they choose, and their cases in processes of their own.

Whether triton interprets is settled at its first import and for the whole process. Hence cases run
apart: by the interpreter (`triton_cases.py`), and through the compiler (`triton_compile.py`).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from graftwork.errors import InputError, MissingDependencyError, UnsupportedError
from graftwork.serving._triton import (
    RowTile,
    add_low_rank,
    add_shared_sparse,
    add_sparse,
    row_tile,
)

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is published for Linux only"
)


def arguments(**other: Tensor) -> dict[str, Tensor]:
    """Return arguments of `add_sparse`: 2 positions, 2 groups, 3 outputs, 4 inputs, 5 entries."""
    fitting = {
        "y": torch.zeros(2, 3),
        "x": torch.ones(2, 4),
        "bounds": torch.tensor([0, 1, 2]),
        "crow": torch.tensor([0, 1, 2, 3, 4, 5, 5], dtype=torch.int32),
        "cols": torch.zeros(5, dtype=torch.int32),
        "values": torch.ones(5),
    }
    return fitting | other


WRONG: list[tuple[str, Tensor, str]] = [
    ("y", torch.zeros(2, 3).double(), r"y is torch.float64, not torch.float32 or"),
    ("y", torch.zeros(3, 2).t(), r"y has shape \(2, 3\) and strides \(1, 2\): wanted .* stride 1"),
    ("y", torch.zeros(1, 3).expand(2, 3), r"the rows of y overlap \(stride 0, width 3\)"),
    ("y", torch.zeros(2, 3, requires_grad=True), r"no backward: call them under torch.no_grad"),
    ("y", torch.zeros(2, 3, device="meta"), r"x is on cpu, y on meta"),
    ("x", torch.ones(3, 4), r"x has shape \(3, 4\), not \(2, 4\)"),
    ("x", torch.ones(4), r"x has shape \(4,\) and strides"),
    (
        "bounds",
        torch.tensor([0.0, 2.0]),
        r"bounds is torch.float32, not torch.int32 or torch.int64",
    ),
    ("bounds", torch.zeros(0).int(), r"bounds has shape \(0,\), not \(1,\)"),
    ("crow", torch.zeros(6).int(), r"crow has shape \(6,\), not \(7,\)"),
    ("cols", torch.zeros(5).long(), r"cols is torch.int64, not torch.int32"),
    ("cols", torch.zeros(10).int()[::2], r"cols is not contiguous"),
    ("values", torch.zeros(4), r"values has shape \(4,\), not \(5,\)"),
    ("values", torch.zeros(5).int(), r"values is torch.int32, not torch.float32 or"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_what_does_not_fit_is_named(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_sparse(**arguments(**{name: value}))


def test_shared_support_and_factors_that_do_not_fit_are_named() -> None:
    given = arguments(crow=torch.zeros(4).int(), values=torch.ones(3, 5))
    with pytest.raises(InputError, match=r"values has shape \(3, 5\), not \(2, 5\)"):
        add_shared_sparse(**given)
    y, x, bounds = (arguments()[name] for name in ("y", "x", "bounds"))
    with pytest.raises(InputError, match=r"right has shape \(2, 6, 5\), not \(2, 6, 4\)"):
        add_low_rank(y, x, bounds, torch.ones(2, 6, 5), torch.ones(2, 3, 6))
    with pytest.raises(InputError, match=r"left has shape \(2, 3, 5\), not \(2, 3, 6\)"):
        add_low_rank(y, x, bounds, torch.ones(2, 6, 4), torch.ones(2, 3, 5))
    with pytest.raises(InputError, match=r"right has shape \(6, 4\), not \(2, -1, 4\)"):
        add_low_rank(y, x, bounds, torch.ones(6, 4), torch.ones(2, 3, 6))


def calls() -> list[Callable[[], None]]:
    y, x, bounds = (arguments()[name] for name in ("y", "x", "bounds"))
    crow, values = torch.tensor([0, 5, 5, 5]).int(), torch.ones(2, 5)
    return [
        lambda: add_sparse(**arguments()),
        lambda: add_shared_sparse(**arguments(crow=crow, values=values)),
        lambda: add_low_rank(y, x, bounds, torch.ones(2, 1, 4), torch.ones(2, 3, 1)),
    ]


@pytest.mark.parametrize("call", calls(), ids=["sparse", "shared", "low rank"])
def test_without_triton_the_install_line_is_printed(
    call: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'graftwork\[gpu\]'"):
        call()


@pytest.mark.parametrize("call", calls(), ids=["sparse", "shared", "low rank"])
def test_tensors_on_the_cpu_are_refused(
    call: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stand-ins, so that this process does not import triton.
    kernels = SimpleNamespace(INTERPRETED=False)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "graftwork.serving._triton_kernels", kernels)
    with pytest.raises(UnsupportedError, match=r"on a GPU, not on 'cpu': .*TRITON_INTERPRET=1"):
        call()


def test_nothing_to_add_needs_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    y, x, none = torch.ones(2, 3), torch.ones(2, 4), torch.zeros(0)
    add_sparse(y, x, torch.tensor([0, 1, 2]), torch.zeros(7).int(), none.int(), none)
    add_sparse(y, x, torch.tensor([0]), torch.zeros(1).int(), none.int(), none)
    add_sparse(**arguments(y=torch.zeros(0, 3), x=torch.zeros(0, 4), bounds=torch.zeros(3).int()))
    add_shared_sparse(y, x, torch.tensor([0, 2]), torch.zeros(4).int(), none.int(), none[None])
    add_low_rank(y, x, torch.tensor([0, 2]), torch.zeros(1, 0, 4), torch.zeros(1, 3, 0))
    assert (y == 1).all()


@pytest.mark.parametrize(
    ("positions", "groups", "shared", "wanted"),
    [
        (200, 200, False, 1),
        (200, 200, True, 4),
        (64, 16, False, 4),
        (512, 16, True, 32),
        (8192, 16, False, 64),
    ],
)
def test_tiles_follow_the_size_of_groups(
    positions: int, groups: int, shared: bool, wanted: int
) -> None:
    tile = row_tile(positions, groups, 768, groups * 2949, shared)
    assert tile.positions == wanted


@pytest.mark.parametrize("out", [1, 3, 768, 4096])
@pytest.mark.parametrize("mean", [0.01, 4, 20, 4096])
@pytest.mark.parametrize("positions", [16, 64, 1000])
def test_tiles_are_powers_of_two_of_bounded_size(out: int, mean: float, positions: int) -> None:
    tile = row_tile(positions, 16, out, max(1, int(16 * out * mean)))
    assert all(n & (n - 1) == 0 for n in (tile.positions, tile.rows, tile.width, tile.warps))
    assert tile.rows < 2 * out
    assert tile.positions * tile.rows * (1 if tile.positions > 16 else tile.width) <= 2048


def test_a_tile_has_no_positional_arguments() -> None:
    with pytest.raises(TypeError):
        RowTile(1, 8, 4)  # type: ignore[misc]


def run_apart(file: str, *options: str, interpret: bool) -> None:
    """Run a file of cases by pytest in a new process; show its output where it fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", *options]
    apart = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0"}
    done = subprocess.run(
        [*command, str(HERE / file)],
        env=apart,
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


PARTS = {
    "sparse": "test_sparse",
    "shared": "test_shared_sparse",
    "rest": "not test_sparse and not test_shared_sparse",
}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_cases_by_the_interpreter(part: str) -> None:
    run_apart("triton_cases.py", "-k", PARTS[part], interpret=True)


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_a_card() -> None:
    run_apart("triton_compile.py", interpret=False)
