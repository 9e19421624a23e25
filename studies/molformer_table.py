"""What frozen features of a base know of the public sets of molecules: a table in Markdown.

    python studies/molformer_table.py --base runs/molecules/base --data ../shared/data/molformer

For each set, target and split: ridge or logistic regression on mean- and max-pooled features of the
base, of the same architecture at random, and on counts of tokens; the penalty is chosen on the
validation rows (80/10/10). R2 in percent for numbers, ROC-AUC in percent for yes/no.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from graftwork import bases
from graftwork.domains.molecules import (
    MOLECULE_SETS,
    Embedder,
    probe,
    read_molecule_set,
    split_molecules,
    token_counts,
)

TARGETS = {"qm9": ("homo", "gap", "alpha", "mu")}
SPLITS = ("random", "scaffold")


def random_base(folder: str, seed: int) -> bases.Base:
    """Return a base of the same architecture, tokenizer and length with random weights."""
    _, config, tokenizer = bases.load_module(folder)
    with torch.random.fork_rng(), TemporaryDirectory() as place:
        torch.manual_seed(seed)
        module = config.build()
        path = Path(place) / "random"
        bases.save(module, path, config=config, tokenizer=tokenizer, pooling="mean")
        return replace(bases.load(path), max_length=bases.load(folder).max_length)


def measure(name: str, data: str, features: dict[str, Embedder], seed: int) -> list[dict]:
    """Return one row a target and split of a set."""
    found = read_molecule_set(name, data)
    smiles = list(found.table["smiles"])
    x = {method: embedder.canonical(smiles) for method, embedder in features.items()}
    x["bag of tokens"] = token_counts(smiles)
    metric = "r2" if found.kind == "regression" else "roc_auc"
    rows = []
    for kind in SPLITS:
        split = split_molecules(smiles, kind, seed=seed)
        for target in TARGETS.get(name, found.targets):
            y = np.asarray(found.table[target], dtype=np.float64)
            scores = {m: probe(v, y, split, found.kind)[metric] for m, v in x.items()}
            scale = 100 if metric == "r2" else 1
            row = {"set": name, "target": target, "split": kind, "metric": metric}
            rows.append(row | {m: round(scale * s, 1) for m, s in scores.items()})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def markdown(rows: list[dict]) -> str:
    """Return rows as a table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(r[n]) for n in names) + " |" for r in rows])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", default="../shared/data/molformer")
    parser.add_argument("--sets", nargs="+", default=list(MOLECULE_SETS))
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    both = {
        "pretrained": Embedder(bases.load(flags.base), ("mean", "max")),
        "random init": Embedder(random_base(flags.base, flags.seed + 1000), ("mean", "max")),
    }
    rows = [r for name in flags.sets for r in measure(name, flags.data, both, flags.seed)]
    print(markdown(rows))


if __name__ == "__main__":
    main()
