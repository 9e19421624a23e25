"""The capability table: which tuner trains which kind of module in which type, by trying.

    python -m tests.battery.capabilities    # writes docs/capabilities.md

A cell holds where every stage of the tuner makes an update, its delta changes the module, and the
view of that delta on the base gives what the trained module gave. What is refused says so by an
error of graftwork; any other error is a defect, and ends the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from graftwork._errors import GraftworkError
from graftwork.bases import load
from graftwork.deltas import view
from graftwork.tuning import TUNERS, Bottlenecks, Tuner, as_delta
from tests.battery.models import Experts
from tests.tuning.support import plain_base

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WHOLE = ("head", "prompt", "prefix")
"""Tuners of whole models, or of none: they have no targets."""
NAMES = {torch.float64: "64", torch.float32: "32", torch.bfloat16: "bf16", torch.float16: "f16"}


class Sequences(nn.Module):
    """Runs a recurrent or attention layer and returns its outputs alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        several = isinstance(self.layer, nn.MultiheadAttention)
        out: Tensor = (self.layer(x, x, x) if several else self.layer(x))[0]
        return out


class Transposed(nn.Module):
    """GPT-2's Conv1D, whose weight is `(in, out)`."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.layer = Conv1D(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def _floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


IN_8_BITS = "linear in 8 bits"
KINDS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(16, 8)), _floats(4, 16)),
    IN_8_BITS: (lambda: nn.Sequential(nn.Linear(16, 8)), _floats(4, 16)),
    "Conv1D (GPT-2)": (Transposed, _floats(4, 16)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3)), _floats(2, 4, 5, 5)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(6, 16)), lambda: torch.arange(6)[None]),
    "norm": (lambda: nn.Sequential(nn.LayerNorm(16)), _floats(4, 16)),
    "LSTM": (lambda: Sequences(nn.LSTM(16, 8, batch_first=True)), _floats(2, 5, 16)),
    "fused attention": (
        lambda: Sequences(nn.MultiheadAttention(16, 2, batch_first=True)),
        _floats(2, 5, 16),
    ),
    "3-D experts": (Experts, _floats(2, 5, 16)),
}
"""Kind of module -> how one is built, and its input."""


def works(tuner: Tuner, kind: str, dtype: torch.dtype) -> bool:
    """Return whether a tuner trains a kind of module in a type; False where it refuses."""
    build, inputs = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, x = build().to(dtype), inputs()
    base = load(module, quantise="int8") if kind == IN_8_BITS else plain_base(module)
    x = x.to(dtype) if x.is_floating_point() else x
    try:
        trained = _train(tuner, base, x)
        delta = as_delta(base, trained.extract("float64"), ports=trained.ports("float64"))
        with trained.settled() as module, torch.no_grad():
            ours = module(x)
            moved = not torch.equal(ours, base.model(x))
            seen = view(base, delta)(x)
    except GraftworkError:
        return False
    bound = 1e-9 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(seen, ours, rtol=bound, atol=bound)
    assert moved, f"{tuner} changed nothing of {kind} in {dtype}"
    return True


def _train(tuner, base, x):
    trained = tuner.attach(base, list(base.names.pieces), seed=0)
    for _ in tuner.stages:
        values = list(trained)
        optimiser = torch.optim.Adam(values, lr=1e-2) if values else None
        for step in range(4):
            trained.prepare(step / 4, seed=step)
            trained.module(x).float().square().mean().backward()
            trained.collect()
            if optimiser is not None:
                optimiser.step()
                optimiser.zero_grad()
        following = trained.advance()
        trained = following or trained
    return trained


def tuner_of(name: str) -> Tuner:
    """Return a tuner that is large enough for tiny modules."""
    fields = TUNERS[name].__dataclass_fields__
    known = {"share": 0.3, "rank": 2, "gates_share": 0.5, "hold": 0.1}
    if name == "bottlenecks":
        return Bottlenecks(places=("*weight",))
    return TUNERS[name](**{key: value for key, value in known.items() if key in fields})


def page() -> str:
    """Return the page: a row a tuner, a column a kind of module, the types that work in a cell."""
    rows = [f"| tuner | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    for name in TUNERS:
        if name in WHOLE:
            continue
        cells = []
        for kind in KINDS:
            found = [NAMES[dtype] for dtype in TYPES if works(tuner_of(name), kind, dtype)]
            cells.append("all" if len(found) == len(TYPES) else " ".join(found) or "no")
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return HEAD + "\n".join(rows) + "\n"


HEAD = """# What works with what

Made by `python -m tests.battery.capabilities`, and held up to date by a test: in every cell but
"no" the tuner was trained for some steps, its delta changed what the module gives, and the view of
the delta on the base gives the same. "all" means a base in 64 and 32 bits, bfloat16 and float16, on
the CPU; "no" means that graftwork refuses and says why, never that nothing happens. In
the column "linear in 8 bits" the type is the one that the layer computes in ([Bases in 16 and 8
bits](narrow.md)).

A tuner trains what suits it: BitFit finds biases only, low-rank terms and IA3 need matrices,
bottlenecks follow layers that a module calls and whose outputs are features last. Of the experts
the router, an ordinary layer, is a target too. `head` tunes no module of the base; `prompt` and
`prefix` need a whole transformer ([LoRA and its kin](low-rank.md)).

"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
