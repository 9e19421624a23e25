"""The matrix of mixed batches: which term, module, type and mode runs how, by trying.

    python -m tests.battery.mixed    # writes docs/mixed-batches-matrix.md

Every cell is measured on changes that were trained (60 steps, loss down by 30 % or more), in a
batch of rows with two deltas of the kind, both together, other weights, another kind and none. What
comes out is compared with the reference row executor; a difference beyond the tolerance ends the
program.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork._batch import Batch
from graftwork._errors import GraftworkError
from graftwork.bases import Base, load
from graftwork.deltas import (
    Delta,
    Port,
    SeededMask,
    Sparse,
    Update,
    fingerprint_of,
    port_of,
    quantise,
    seeded_positions,
)
from graftwork.nn import InputEmbedder
from graftwork.tuning import Bottlenecks, PrefixTuning, PromptTuning, Tuner, as_delta
from tests.battery import capabilities
from tests.battery.deltas import KINDS as CUTS
from tests.battery.deltas import trained_head
from tests.battery.models import CASES, Case, Experts, train_full
from tests.serving.support import TOLERANCE, Held
from tests.tuning.support import train

PAGE = Path(__file__).parents[2] / "docs" / "mixed-batches-matrix.md"
Call = Callable[[nn.Module, nn.ModuleDict, Any], Tensor]
Cut = Callable[[str, Tensor, Tensor], Update | None]
NAMES = capabilities.NAMES


def _seeded(name: str, before: Tensor, after: Tensor) -> Update:
    change, mask = (after - before).reshape(-1), SeededMask(5, name)
    positions = seeded_positions(mask, change.numel(), max(1, change.numel() // 5))
    values = quantise(change[positions], "float16")
    return Update(tuple(before.shape), sparse=Sparse(positions, values, mask))


def _input_scale(_name: str, before: Tensor, after: Tensor) -> Update | None:
    if before.dim() < 2:
        return None
    axes = [d for d in range(before.dim()) if d != 1]
    factor = (before * after).sum(axes, keepdim=True) / (before * before).sum(axes, keepdim=True)
    return Update(tuple(before.shape), scale=quantise(factor, "float32"))


def _cut(kind: str, least: int = 1) -> Cut:
    def cut(_name: str, before: Tensor, after: Tensor) -> Update | None:
        return CUTS[kind](before, after) if before.dim() >= least else None

    return cut


def _both(_name: str, before: Tensor, after: Tensor) -> Update | None:
    if before.dim() < 2:
        return None
    low = CUTS["low_rank"](before, after)
    return replace(low, sparse=CUTS["sparse"](before, after).sparse)


TERMS: Mapping[str, Cut] = {
    "sparse": _cut("sparse"),
    "sparse, seeded": _seeded,
    "low-rank": _cut("low_rank", 2),
    "scale of outputs": _cut("scale"),
    "scale of inputs": _input_scale,
    "dense, 8 bits": _cut("dense"),
    "sparse + low-rank": _both,
    "all four": _cut("mixed"),
}
"""Term -> what cuts it out of a trained change; None where a tensor has too few dimensions."""


def _image(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(6, *shape)


def _sequences(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: capabilities.Sequences(layer())


MODULES: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(16, 8)), _image(16)),
    "Conv1D": (capabilities.Transposed, _image(3, 16)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3)), _image(4, 5, 5)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(12, 16)),
        lambda: torch.randint(0, 12, (6, 5)),
    ),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(16)), _image(3, 16)),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 16)), _image(16, 3)),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(16)), _image(16, 3)),
    "LSTM": (_sequences(lambda: nn.LSTM(16, 8, batch_first=True)), _image(5, 16)),
    "MultiheadAttention": (
        _sequences(lambda: nn.MultiheadAttention(16, 2, batch_first=True)),
        _image(5, 16),
    ),
    "3-D experts": (Experts, _image(5, 16)),
}


@functools.cache
def changed(module: str) -> tuple[nn.Module, Tensor, Mapping[str, Tensor]]:
    """Return a module, its inputs, and its parameters after training towards another one's."""
    build, inputs = MODULES[module]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start, x = build().eval(), inputs()
        goal = copy.deepcopy(start)
        with torch.no_grad():
            for parameter in goal.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        tuned = copy.deepcopy(start)
        with torch.no_grad():
            target = goal(x)
        optimiser = torch.optim.Adam(tuned.parameters(), lr=2e-2)
        losses = []
        for _ in range(60):
            optimiser.zero_grad()
            loss = F.mse_loss(tuned(x), target)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], (module, losses[0], losses[-1])
    return start, x, {name: p.detach() for name, p in tuned.named_parameters()}


POSITIONS = "relative_attention_bias"
"""T5's table of relative positions: what it gives has no rows, so a delta of it runs by itself."""


def cut_deltas(base: Base, tuned: Mapping[str, Tensor], cut: Cut) -> list[Delta]:
    """Return two deltas of one term: the trained change, and that with noise."""
    found = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        updates = {}
        for name, piece in base.names.pieces.items():
            if POSITIONS in name:
                continue
            before = piece.of(base.model.get_parameter(piece.parameter)).detach().float()
            after = tuned[name].float()
            after = after + 0.1 * seed * torch.randn(after.shape, generator=generator)
            update = cut(name, before, after)
            if update is not None:
                updates[name] = update
        if not updates:
            return []
        found.append(Delta(updates, fingerprint=fingerprint_of(base, list(updates))))
    return found


ROWS = (((0, 1.0),), (), ((1, 1.0),), ((0, 0.5), (1, -0.25)), ((2, 1.0),), ((1, 1.0),))


def module_cell(term: str, module: str, dtype: torch.dtype) -> str:
    """Return how rows with a term at a module run; "-" where the module has nothing for it."""
    start, x, tuned = changed(module)
    base = load(copy.deepcopy(start).to(dtype))
    deltas = cut_deltas(base, tuned, TERMS[term])
    if not deltas:
        return "-"
    deltas += cut_deltas(base, tuned, CUTS_OTHER)[:1]
    batch = Batch({"x": x.to(dtype) if x.is_floating_point() else x}, None, torch.arange(6))
    return _how(base, deltas, ROWS, batch, lambda m, _p, i: m(i["x"]), TOLERANCE[dtype])


CUTS_OTHER = _cut("sparse")


def _how(
    base: Base,
    deltas: Sequence[Delta],
    rows: Any,
    batch: Batch,
    call: Call,
    tolerance: float,
) -> str:
    """Run a batch, compare, and return how it ran."""
    held = Held.of(base, deltas)
    calls = [0]

    def counted(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        calls[0] += 1
        return call(module, ports, inputs)

    try:
        held.run(rows, batch, counted)
        calls[0] = 0
        _, report = held.run(rows, batch, counted)
        forwards = calls[0]
        held.check(rows, batch, call, tolerance)
    except GraftworkError:
        return "refused"
    held.base.verify()
    kinds = {port.kind for delta in deltas for port in delta.ports.values()}
    if report.whole or (forwards > 1 and kinds & {"prompt", "prefix"}):
        return "by itself"
    if report.apart and report.together:
        return "together and apart"
    return "apart" if report.apart else "together"


def _seq2seq() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=39,
        )
    )


def _first_logits(module: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    start = torch.zeros(len(inputs["input_ids"]), 1, dtype=torch.int64)
    out: Tensor = module(**inputs, decoder_input_ids=start).logits[:, 0, :2]
    return out


BERT, GPT2, VIT = (CASES[name] for name in ("bert", "gpt2", "vit"))
T5 = Case("t5", _seq2seq, BERT.make_inputs, _first_logits, BERT.label, learning_rate=1e-2)


def forward_of(case: Case) -> Call:
    """Return a call that runs a model once, on foreign inputs where a port embeds them."""

    def call(module: nn.Module, ports: nn.ModuleDict, inputs: Mapping[str, Any]) -> Tensor:
        features = inputs.get("features")
        given = {key: value for key, value in inputs.items() if key != "features"}
        if "input" in ports:
            given = {"inputs_embeds": ports["input"](features)}
        logits = case.call(module, given)
        return ports["head"](logits) if "head" in ports else logits

    return call


def generate(module: nn.Module, _ports: nn.ModuleDict, inputs: Mapping[str, Any]) -> Tensor:
    """Return six new tokens, chosen greedily."""
    model: Any = module
    ids = inputs["input_ids"]
    out: Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
    )
    return out


MODES: Mapping[str, tuple[Case, Call]] = {
    "encoder (BERT)": (BERT, forward_of(BERT)),
    "decoder (GPT-2)": (GPT2, forward_of(GPT2)),
    "GPT-2, generate": (GPT2, generate),
    "encoder-decoder (T5)": (T5, forward_of(T5)),
    "T5, generate": (T5, generate),
    "vision (ViT)": (VIT, forward_of(VIT)),
}
PLACES = {"bert": "*output.dense.weight", "gpt2": "*mlp.c_proj.weight", "t5": "*wo.weight"}
PLACES["vit"] = "*output.dense.weight"
WORDS = torch.randn(40, 5, generator=torch.Generator().manual_seed(9))
"""Features of the tokens, as foreign inputs."""


@functools.cache
def tuned_base(name: str) -> tuple[Base, Mapping[str, Tensor]]:
    """Return a model's base, and its parameters after full fine-tuning, by canonical name."""
    case = next(case for case, _ in MODES.values() if case.name == name)
    base, module = load(case.build()), case.build()
    before, after = train_full(case, module)
    assert after < 0.7 * before
    pieces = base.names.pieces.items()
    return base, {
        n: piece.of(module.get_parameter(piece.parameter)).detach() for n, piece in pieces
    }


def port_deltas(kind: str, case: Case) -> list[Delta]:
    """Return two deltas that have trained modules at a port."""
    base, _ = tuned_base(case.name)
    tuner: Tuner
    if kind == "head":
        ports = [trained_head(case, base, labels, labels) for labels in (3, 5)]
        return [Delta({}, {"head": port}) for port in ports]
    if kind == "input":
        return [Delta({}, {"input": _trained_input(case, base, seed)}) for seed in (0, 1)]
    if kind == "bottleneck":
        tuner = Bottlenecks(places=(PLACES[case.name],), reduction=4, values_lr=3e-2)
    else:
        tuner = {"prompt": PromptTuning, "prefix": PrefixTuning}[kind](length=3)
    return [_tuned_ports(case, base, tuner, seed) for seed in (0, 1)]


def _tuned_ports(case: Case, base: Base, tuner: Tuner, seed: int) -> Delta:
    attachment = tuner.attach(base, list(base.names.pieces), seed=seed)

    def loss(module: nn.Module, step: int) -> Tensor:
        return case.loss(module, case.batch(32, seed=step)).mean()

    trained = train(tuner, attachment, loss, 60)
    return as_delta(base, trained.extract("float32"), ports=trained.ports("float32"))


def _trained_input(case: Case, base: Base, seed: int) -> Port:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedder = InputEmbedder(5, 16)
    optimiser = torch.optim.Adam(embedder.parameters(), lr=3e-2)
    for step in range(60):
        batch = case.batch(32, seed=step)
        optimiser.zero_grad()
        logits = case.call(
            base.model, {"inputs_embeds": embedder(WORDS[batch.inputs["input_ids"]])}
        )
        assert batch.targets is not None
        F.cross_entropy(logits, batch.targets).backward()
        optimiser.step()
    return port_of(embedder, "input", {"in_features": 5, "width": 16}, "float32")


PORTS: Mapping[str, Sequence[str]] = {
    "head": ["encoder (BERT)", "decoder (GPT-2)", "encoder-decoder (T5)", "vision (ViT)"],
    "bottleneck": list(MODES),
    "prompt": list(MODES)[:-1],
    "prefix": ["decoder (GPT-2)", "GPT-2, generate"],
    "input": ["encoder (BERT)"],
}
"""Port -> the modes for which there is one."""
APART_ROWS = (((0, 1.0),), (), ((1, 1.0),), ((0, 1.0),), ((2, 1.0),), ((1, 1.0),))
"""For ports that cannot be mixed or weighted."""


def mode_cell(term: str, mode: str) -> str:
    """Return how rows with a term or port run over a whole model; "-" where there is none."""
    case, call = MODES[mode]
    base, tuned = tuned_base(case.name)
    if term in PORTS and mode not in PORTS[term]:
        return "-"
    deltas = port_deltas(term, case) if term in PORTS else cut_deltas(base, tuned, TERMS[term])
    deltas += cut_deltas(base, tuned, CUTS_OTHER)[:1]
    batch = case.batch(6)
    if term == "input":
        batch = replace(
            batch, inputs={**batch.inputs, "features": WORDS[batch.inputs["input_ids"]]}
        )
    rows = ROWS if term in TERMS or term == "bottleneck" else APART_ROWS
    return _how(base, deltas, rows, batch, call, TOLERANCE[torch.float32])


def page() -> str:
    """Return the page."""
    lines = [f"| term | {' | '.join(MODULES)} |", f"|---|{'---|' * len(MODULES)}"]
    for term in TERMS:
        cells = [_types({t: module_cell(term, module, t) for t in NAMES}) for module in MODULES]
        lines.append(f"| {term} | {' | '.join(cells)} |")
    second = [f"| term or port | {' | '.join(MODES)} |", f"|---|{'---|' * len(MODES)}"]
    second += [
        f"| {term} | {' | '.join(mode_cell(term, mode) for mode in MODES)} |"
        for term in (*TERMS, *PORTS)
    ]
    return HEAD + "\n".join(lines) + MIDDLE + "\n".join(second) + "\n"


def _types(found: Mapping[torch.dtype, str]) -> str:
    """Return a cell: one word where all types are alike, else each with its types."""
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    by: dict[str, list[str]] = {}
    for dtype, how in found.items():
        by.setdefault(how, []).append(NAMES[dtype])
    return ", ".join(f"{how} ({' '.join(types)})" for how, types in by.items())


HEAD = """# The matrix of mixed batches

Made by `python -m tests.battery.mixed`, and held up to date by a test. Each cell is a batch of six
rows over changes that were trained for 60 steps (loss down by 30 % or more): two deltas of the
kind, both in one row with weights 0.5 and -0.25, a sparse delta of another task, and a row of the
base alone. Every row must equal the reference row executor's (`graftwork.deltas.run_rows`) within
1e-10 (64 bits), 1e-5 (32), 0.05 (bfloat16) and 0.01 (float16) of its largest entry; the page cannot
be made otherwise.

- **together**: one product or look-up serves all rows.
- **apart**: the module runs once for each different list of deltas, inside one forward of the base.
- **together and apart**: some modules of the model this way, some that.
- **by itself**: such rows have a forward of their own.
- **refused**: an error that says why.
- **-**: there is no such thing here, as a low-rank term of a vector.

Where types are not named, 64 and 32 bits, bfloat16 and float16 are alike. All of it is measured on
the CPU; on a GPU these cells have never run.

## Terms at one module

"""
MIDDLE = """

## Terms and ports over whole models

In 32 bits. A decoder's `generate` has a cache of keys and values. Heads have 3 and 5 labels; rows
without one stand beside them. T5's deltas leave its table of relative positions alone: what that
gives has no rows, and a delta that changes it runs by itself.

"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
