"""What does it cost in `generate` that the rows of a batch have different deltas?

Base: a decoder of GPT-2's shape, 4 layers of 768, 50,257 words (67 M weights of random values), 16
rows of 8 tokens, 32 new ones, greedy, with a cache. Deltas: 0.5 % of every matrix of the layers.
Compared in turns in one process: 16 different deltas, one delta for all 16 rows, the base alone,
and one row after the other through `view`, as without mixed batches.

    python benchmarks/mixed_decoder.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mixed_encoder import Run, compared, turns
from torch import Tensor, nn

from graftwork import bases, deltas
from graftwork._batch import Batch
from graftwork.serving import Mixer, Report

ROWS, PROMPT, NEW, SHARE = 16, 8, 32, 0.005


def base_of() -> bases.Base:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, n_embd=768, n_head=12, eos_token_id=50256, bos_token_id=50256)
    return bases.load(GPT2LMHeadModel(config).eval())


def delta_of(base: bases.Base, seed: int) -> deltas.Delta:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name in base.names.match(["*.h.*.weight"]):
        shape = base.names[name].shape
        if len(shape) != 2:
            continue
        count = int(shape[0] * shape[1] * SHARE)
        chosen = torch.randint(0, shape[0] * shape[1], (count,), generator=generator).unique()
        values = (torch.randn(len(chosen), generator=generator) * 0.01).half()
        updates[name] = deltas.Update(shape, sparse=deltas.Sparse(chosen, values))
    return deltas.Delta(updates, fingerprint=deltas.fingerprint_of(base, updates))


def call(module: nn.Module, _ports: nn.ModuleDict, inputs: Any) -> Tensor:
    found: Tensor = module.generate(  # type: ignore[operator]
        **inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=50256
    )
    return found


def mixed(mixer: Mixer, keys: Sequence[str], batch: Batch, report: Report) -> Run:
    plan = mixer.plan([[(keys[row % len(keys)], 1.0)] for row in range(ROWS)])
    return lambda: mixer.run(plan, batch, call, report)


def one_by_one(base: bases.Base, held: Sequence[deltas.Delta], batch: Batch) -> Run:
    views = [deltas.view(base, delta).eval() for delta in held]

    def run() -> object:
        rows = [{k: v[row : row + 1] for k, v in batch.inputs.items()} for row in range(ROWS)]
        with torch.no_grad():
            return [call(view, nn.ModuleDict(), row) for view, row in zip(views, rows, strict=True)]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-rows", action="store_true", help="leave out one row at a time")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    base = base_of()
    held = [delta_of(base, seed) for seed in range(ROWS)]
    mixer, report = Mixer(base), Report()
    keys = [mixer.add(delta) for delta in held]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50000, (ROWS, PROMPT), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch(inputs, None, torch.arange(ROWS))
    runs: dict[str, Run] = {
        "distinct": mixed(mixer, keys, batch, report),
        "identical": mixed(mixer, keys[:1], batch, report),
        "base": lambda: call(base.model, nn.ModuleDict(), inputs),
    }
    if not args.no_rows:
        runs["one by one"] = one_by_one(base, held, batch)
    seconds = turns(runs, args.rounds)
    results = {
        f"distinct / {other}": compared(seconds, "distinct", other)
        for other in runs
        if other != "distinct"
    }
    document = {
        "base": "decoder 4 x 768",
        "rows": ROWS,
        "new_tokens": NEW,
        "share": SHARE,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "paths": report.paths,
        "whole": report.whole,
        "results": results,
    }
    print(json.dumps(document, indent=1))
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
