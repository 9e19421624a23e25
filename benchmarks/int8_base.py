"""What does a base held in 8 bits save, what does it cost, and what is lost?

Base: MiniLM, floating and by `bases.load("minilm", quantise="int8")`. Rival: the same tensors run
by torchao's own layer, which keeps a floating copy of each weight for the backward pass. Kept bytes
are counted by hooks on what autograd saves, without the base's own tensors. Variants take turns;
seconds are medians over rounds, one thread. Accuracy: a logistic probe of frozen embeddings of the
pairs of `comparisons`, fitted and judged on each base.

    python benchmarks/int8_base.py [--rounds 9] [--rows 480] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from graftwork import bases, deltas
from graftwork.tasks import comparisons

Run = Callable[[], Any]


def torchao_layers(base: bases.Base) -> nn.Module:
    """Return the same 8 bits under torch's own linear layers, which hand them to torchao."""
    model = copy.deepcopy(base.model)
    for module in model.modules():
        if type(module) is deltas.Int8Linear:
            module.__class__ = nn.Linear
    return model


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes that hold the parameters."""
    return sum(part.nbytes for p in model.parameters() for part in deltas.held_by(p))


def inputs_of(base: bases.Base, rows: int) -> dict[str, Tensor]:
    """Return tokenised sentences and their embeddings, which want a gradient."""
    texts = [str(row["premise"]) for row in comparisons("eval", 32).records()][:rows]
    tokens = base.tokenizer(texts, return_tensors="pt", padding=True)
    table = base.model.get_input_embeddings()
    return {
        "inputs_embeds": table(tokens["input_ids"]).detach().requires_grad_(),
        "attention_mask": tokens["attention_mask"],
    }


def kept_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Return the bytes that autograd keeps of a forward pass, beside the model's own tensors."""
    own = [part for p in (*model.parameters(), *model.buffers()) for part in deltas.held_by(p)]
    known = {t.untyped_storage().data_ptr() for t in own}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no place comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(**inputs).last_hidden_state.sum().backward()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def forward(model: nn.Module, inputs: dict[str, Tensor]) -> Run:
    """Return a forward pass without gradients."""

    @torch.no_grad()
    def run() -> None:
        model(**inputs)

    return run


def step(model: nn.Module, inputs: dict[str, Tensor]) -> Run:
    """Return a forward and backward pass of a frozen model."""
    return lambda: model(**inputs).last_hidden_state.sum().backward()


def seconds(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def costs(rounds: int) -> dict[str, Any]:
    """Return bytes and seconds of the floating base, of 8 bits, and of those by torchao's layer."""
    floating, eight = bases.load("minilm"), bases.load("minilm", quantise="int8")
    models = {"float": floating.model, "int8": eight.model, "torchao": torchao_layers(eight)}
    few, many = (inputs_of(floating, rows) for rows in (1, 32))
    with torch.no_grad():
        mask = many["attention_mask"][..., None]
        a, b = ((m(**many).last_hidden_state * mask).sum(1) for m in (floating.model, eight.model))
    cosines = nn.functional.cosine_similarity(a, b)
    return {
        "weight_bytes": {name: weight_bytes(model) for name, model in models.items()},
        "kept_bytes_32_rows": {name: kept_bytes(model, many) for name, model in models.items()},
        "forward_1_row": seconds({n: forward(m, few) for n, m in models.items()}, rounds),
        "forward_32_rows": seconds({n: forward(m, many) for n, m in models.items()}, rounds),
        "step_32_rows": seconds({n: step(m, many) for n, m in models.items()}, rounds),
        "cosine_least": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
    }


def embedded(base: bases.Base, split: str, rows: int) -> tuple[Any, list[str]]:
    """Return features of pairs of sentences under the frozen base, and their labels."""
    table = comparisons(split, rows)
    sides = []
    for column in ("premise", "hypothesis"):
        texts = [str(text) for text in table[column]]
        parts = []
        for at in range(0, len(texts), 32):
            tokens = base.tokenizer(texts[at : at + 32], return_tensors="pt", padding=True)
            with torch.no_grad():
                states = base.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            parts.append((states * mask).sum(1) / mask.sum(1))
        sides.append(torch.cat(parts))
    u, v = sides
    return torch.cat([u, v, (u - v).abs(), u * v], 1).numpy(), list(table["label"])


def accuracies(rows: int) -> dict[str, float]:
    """Return the accuracy of a logistic probe of each base, also on embeddings of the other one."""
    from sklearn.linear_model import LogisticRegression

    kinds: dict[str, Any] = {
        "float": bases.load("minilm"),
        "int8": bases.load("minilm", quantise="int8"),
    }
    seen = {kind: embedded(base, "eval", rows) for kind, base in kinds.items()}
    found = {}
    for kind, base in kinds.items():
        probe = LogisticRegression(max_iter=2000).fit(*embedded(base, "train", 2 * rows))
        found |= {f"{kind} on {other}": float(probe.score(*seen[other])) for other in kinds}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        **costs(flags.rounds),
        "accuracy": accuracies(flags.rows) if flags.rows else {},
        "versions": {name: version(name) for name in ("torch", "torchao", "transformers")},
        "machine": platform.processor() or platform.machine(),
    }
    if flags.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
