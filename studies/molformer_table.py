"""What a base knows of the public sets of molecules, frozen and adapted: tables in Markdown.

    python studies/molformer_table.py frozen --base runs/molecules/base
    python studies/molformer_table.py tuned --base runs/molecules/base
    python studies/molformer_table.py show

*Frozen*, for each set, target and split: ridge or logistic regression on mean- and max-pooled
features of the base, of the same architecture at random, and on counts of tokens; penalty and clip
are chosen on the validation rows (80/10/10). At most 8,000 molecules of a set.

*Tuned*, for each set (all targets at once, a random split, at most 4,000 rows to learn from and
1,000 each to choose the step by and to measure): all weights, and deltas that may change 5 % of
them. R2 in percent for numbers (mean over targets), ROC-AUC in percent for yes/no; bytes of the
file. Rates are those of the claim `molformer`. One seed: these tables show that it works on every
set, not which method is best. A stopped study goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from graftwork import bases, deltas
from graftwork.claims.molformer import SCALES, tuners
from graftwork.domains.molecules import (
    MOLECULE_SETS,
    Embedder,
    probe,
    read_molecule_set,
    split_molecules,
    token_counts,
)
from graftwork.tasks import TaskConfig, evaluate_delta, permutation, task_from_tables
from graftwork.training import TrainConfig, finish, fit, start

Line = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "molformer_table.json"

TARGETS = {"qm9": ("homo", "gap", "alpha", "mu")}
SPLITS: tuple[Literal["random", "scaffold"], ...] = ("random", "scaffold")
METRIC = {"regression": "r2", "binary": "roc_auc"}
TRAIN_ROWS, EVAL_ROWS, STEPS, FROZEN_ROWS = 4000, 1000, 800, 8000


def random_base(folder: str, seed: int) -> bases.Base:
    """Return a base of the same architecture, tokenizer and length with random weights."""
    _, config, tokenizer = bases.load_module(folder)
    with torch.random.fork_rng(), TemporaryDirectory() as place:
        torch.manual_seed(seed)
        module = config.build()
        path = Path(place) / "random"
        bases.save(module, path, config=config, tokenizer=tokenizer, pooling="mean")
        return replace(bases.load(path), max_length=bases.load(folder).max_length)


def frozen(name: str, data: str, folder: str, seed: int) -> Iterator[Line]:
    """Yield one line a target and split of a set."""
    found = read_molecule_set(name, data)
    table = found.table.sample(FROZEN_ROWS, seed=0)
    smiles = list(table["smiles"])
    both = {"pretrained": bases.load(folder), "random init": random_base(folder, seed + 1000)}
    x: dict[str, Any] = {
        m: Embedder(base, ("mean", "max")).canonical(smiles) for m, base in both.items()
    }
    x["bag of tokens"] = token_counts(smiles)
    metric = METRIC[found.kind]
    scale = 100 if metric == "r2" else 1
    for kind, target in itertools.product(SPLITS, TARGETS.get(name, found.targets)):
        y = np.asarray(table[target], dtype=np.float64)
        split = split_molecules(smiles, kind, seed=seed)
        scores = {m: probe(v, y, split, found.kind)[metric] for m, v in x.items()}
        line: Line = {"set": name, "target": target, "split": kind, "metric": metric}
        yield line | {m: round(scale * score, 1) for m, score in scores.items()}


def tuned(name: str, data: str, folder: str, seed: int) -> Iterator[Line]:
    """Yield one line a set: the measure of every method on the test rows, and its bytes."""
    found = read_molecule_set(name, data)
    base, metric = bases.load(folder), METRIC[found.kind]
    split = split_molecules(list(found.table["smiles"]), "random", seed=seed)
    parts = [
        found.table.take(np.sort(rows[permutation(len(rows), seed, "part")[:most]]))
        for rows, most in zip(split, (TRAIN_ROWS, EVAL_ROWS, EVAL_ROWS), strict=True)
    ]
    line: Line = {"set": name, "targets": len(found.targets), "metric": metric}
    for method, tuner in tuners(SCALES["quick"]).items():
        if not method.startswith("pretrained"):
            continue
        config = TaskConfig(
            inputs=("smiles",), label_columns=found.targets, kind=found.kind, metrics=(metric,)
        )
        tables = {"train": parts[0], "eval": parts[1]}
        task = task_from_tables(base, tables, config, batch_size=32, seed=seed)
        adaptation = start(base, task, tuner, seed=seed)
        fit(adaptation, task, TrainConfig(steps=STEPS, eval_every=100, keep_best=True))
        delta, _ = finish(adaptation, task)
        with TemporaryDirectory() as place:
            size = deltas.save(delta, Path(place) / "delta.safetensors")
        score = 100 * evaluate_delta(base, delta, parts[2], metrics=(metric,))[metric]
        title = method.removeprefix("pretrained, ").replace("pretrained", "all weights")
        line |= {title: round(score, 1)}
        line |= {f"kB, {title}": round(size / 1000, 1)}
        print(title, line, flush=True)
    yield line


def stored() -> dict[str, list[Line]]:
    """Return the stored lines of both tables."""
    if not RESULTS.exists():
        return {"frozen": [], "tuned": []}
    found: dict[str, list[Line]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def markdown(rows: list[Line]) -> str:
    """Return rows as a table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(r[n]) for n in names) + " |" for r in rows])


def main() -> None:
    """Measure, store and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("frozen", "tuned", "show"))
    parser.add_argument("--base")
    parser.add_argument("--data", default="../shared/data/molformer")
    parser.add_argument("--sets", nargs="+", default=list(MOLECULE_SETS))
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    if words.what == "show":
        print("\n\n".join(markdown(lines) for lines in stored().values() if lines))
        return
    measure = {"frozen": frozen, "tuned": tuned}[words.what]
    for name in words.sets:
        if name in {line["set"] for line in stored()[words.what]}:
            continue
        lines = list(measure(name, words.data, words.base, words.seed))
        results = stored()  # anew: the other table may be measured beside this one
        results[words.what] += lines
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
