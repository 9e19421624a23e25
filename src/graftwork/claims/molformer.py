"""Pretraining on unlabelled SMILES makes features worth having, and linear attention is linear.

Ross et al. (2021), "Large-Scale Chemical Language Representations Capture Molecular Structure and
Properties". The paper pretrains 47 million weights on up to 1.1 billion molecules. Here 0.43
million weights see the 41 thousand molecules of the HIV set for minutes on two cores, and the
comparisons are those that such a base can decide:

* few labels: fine-tuning from the pretrained weights against from scratch, same architecture, same
  steps, the step chosen on the same validation rows;
* frozen: a linear model on mean- and max-pooled features of the pretrained base, of the same
  architecture at random, and on counts of tokens. Random features are strong on targets that grow
  with a molecule's size, so lipophilicity and the first excitation energy (QM8) decide.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graftwork import bases
from graftwork.claims import _attention as attention
from graftwork.claims._claim import Claim, Progress, Scale
from graftwork.claims._molecules import MADE, Few, corpus, few, labelled
from graftwork.claims._rules import AtMost, Beats, Equals, Row, Rule
from graftwork.deltas import Delta, load, save
from graftwork.domains.molecules import (
    Embedder,
    MoleculeData,
    PretrainConfig,
    attention_map,
    distance_correlation,
    pretrain,
    probe,
    smiles_tokenizer,
    split_molecules,
    token_counts,
    vocabulary_of,
)
from graftwork.models import MolformerConfig
from graftwork.tasks import TaskConfig, evaluate_delta, task_from_tables
from graftwork.training import LogConfig, TrainConfig, finish, fit, start
from graftwork.tuning import DiffPruning, Full, RandomMask, Tuner

MEASURES = ("rmse", "mae", "r2")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates; those of fine-tuning are the best of three each.

    Best by the mean R2 over both sets and the pilot seeds 0-2 on validation rows, see
    `studies/molformer_rates.py`.
    """

    pretrain: float = 1e-3
    """Of the weights, in pretraining; the spec's, not searched."""
    head: float = 1e-3
    """Of the head, everywhere; not searched."""
    pretrained: float = 1e-3
    """Of the weights, fine-tuning from pretrained ones."""
    scratch: float = 1e-3
    """Of the weights, fine-tuning from random ones."""
    mask: float = 3e-2
    """Of the values of a random mask."""
    pruning: float = 3e-2
    """Of the kept values of diff pruning; its dense stage has `pretrained`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One scale of the experiment."""

    sets: tuple[str, ...] = ("lipophilicity", "qm8 E1")
    """Labelled sets."""
    model: MolformerConfig = field(
        default_factory=lambda: MolformerConfig(width=128, layers=4, heads=4, redraw="never")
    )
    """Sizes of the encoder."""
    made: int = 0
    """Unlabelled molecules made by rule; 0 takes the HIV set."""
    most_tokens: int = 80
    """Longest unlabelled molecule, the two ends counted."""
    molecules: int = 4200
    """Labelled molecules of a set that are used in all."""
    pretrain_steps: int = 3000
    """Updates of pretraining, 64 molecules each."""
    labels: int = 300
    """Labelled molecules to fine-tune on."""
    steps: int = 300
    """Updates of fine-tuning, 32 molecules each."""
    share: float = 0.05
    """Part of the weights that a sparse delta may change."""
    looked_at: int = 100
    """Molecules of a set whose attention is compared with bond distances."""
    rates: Rates = field(default_factory=Rates)
    """Learning rates."""
    device: str = "cpu"
    """Where everything runs."""


SCALES: Mapping[Scale, Recipe] = {
    "smoke": Recipe(
        sets=(MADE,),
        model=MolformerConfig(width=32, layers=1, heads=2, features=16),
        made=200,
        molecules=150,
        pretrain_steps=15,
        labels=40,
        steps=15,
        looked_at=5,
    ),
    "quick": Recipe(),
    "full": Recipe(
        model=MolformerConfig(width=256, layers=6, heads=8, redraw="never"),
        molecules=22_000,
        pretrain_steps=30_000,
        labels=1000,
        steps=2000,
        device="cuda",
    ),
}
"""What is run at each scale; only `quick` is judged."""


def tuners(recipe: Recipe) -> dict[str, Tuner]:
    """Return what learns from the few labels: all weights, or a sparse delta."""
    rates = recipe.rates
    return {
        "pretrained": Full(values_lr=rates.pretrained, head_lr=rates.head),
        "pretrained, random mask": RandomMask(
            share=recipe.share, values_lr=rates.mask, head_lr=rates.head
        ),
        "pretrained, diff pruning": DiffPruning(
            share=recipe.share,
            values_lr=rates.pretrained,
            mask_lr=rates.pruning,
            head_lr=rates.head,
        ),
        "scratch": Full(values_lr=rates.scratch, head_lr=rates.head),
    }


def run(scale: Scale, seed: int, data: Path | None, progress: Progress) -> list[Row]:
    """Measure one seed; see `graftwork.claims.Claim`."""
    recipe = SCALES[scale]
    rows = exact(scale, seed)
    molecules = corpus(data, recipe.most_tokens, recipe.made)
    rows.append(Row("tokenizer", "atoms", "not restored", seed, not_restored(molecules)))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(recipe, seed, Path(folder), progress)
        pretrained, random = bench.pretrained(molecules), bench.random(molecules)
        rows += bench.rows
        for name in recipe.sets:
            chosen = labelled(name, data, recipe.molecules)
            rows += bench.few_labels(name, chosen, pretrained, random)
            rows += bench.frozen(name, chosen, pretrained, random)
            rows += bench.nearness(name, chosen, pretrained, random)
        pretrained.verify()
    return rows


def exact(scale: Scale, seed: int) -> list[Row]:
    """Return the rows of the mechanism."""
    lengths = attention.LENGTHS[: 2 if scale == "smoke" else None]
    numbers = {
        "fp32 error": attention.quadratic_error(torch.float32, seed),
        "fp64 error": attention.quadratic_error(torch.float64, seed),
        "rotary error": attention.rotary_error(seed),
        "kernel error": attention.kernel_error(seed),
    }
    counted = attention.exponents(attention.operations, lengths)
    numbers["exponent of operations"] = counted["linear"]
    rows = [Row("attention", "linear", m, seed, value) for m, value in numbers.items()]
    rows.append(Row("attention", "softmax", "softmax operations", seed, counted["softmax"]))
    if scale != "smoke":
        timed = attention.exponents(attention.seconds, lengths)
        rows.append(Row("attention", "linear", "exponent of time", seed, timed["linear"]))
        rows.append(Row("attention", "softmax", "softmax time", seed, timed["softmax"]))
    return rows


def not_restored(molecules: tuple[str, ...]) -> float:
    """Return how many molecules the tokenizer does not give back as they were."""
    tokenizer = smiles_tokenizer(vocabulary_of(molecules))
    ids = tokenizer(list(molecules))["input_ids"]
    back = tokenizer.batch_decode([row[1:-1] for row in ids])
    return float(sum(a != b for a, b in zip(back, molecules, strict=True)))


@dataclass(slots=True)
class Bench:
    """One seed: makes the two bases and measures them.

    Attributes:
        recipe: sizes and budgets.
        seed: of everything.
        folder: where runs and files go.
        progress: is told each result.
        rows: of the pretraining.
    """

    recipe: Recipe
    seed: int
    folder: Path
    progress: Progress
    rows: list[Row] = field(default_factory=list)

    def pretrained(self, molecules: tuple[str, ...]) -> bases.Base:
        """Return a base pretrained on `molecules`."""
        recipe = self.recipe
        config = PretrainConfig(
            data="",
            model=recipe.model,
            max_length=202,
            learning_rate=recipe.rates.pretrain,
            train=TrainConfig(steps=recipe.pretrain_steps, save_every=0, log_every=50),
            seed=self.seed,
            device=recipe.device,
            out=str(self.folder / "pretrained"),
            log=LogConfig(progress="silent"),
        )
        result = pretrain(config, smiles=molecules)
        self.progress(f"seed {self.seed}: pretrained to {dict(result.metrics)}")
        self.rows += [
            Row("pretraining", "masked tokens", name, self.seed, value)
            for name, value in result.metrics.items()
        ]
        return bases.load(self.folder / "pretrained" / "base", device=recipe.device)

    def random(self, molecules: tuple[str, ...]) -> bases.Base:
        """Return a base of the same architecture and tokenizer with random weights."""
        tokenizer = smiles_tokenizer(vocabulary_of(molecules))
        config = replace(self.recipe.model, vocab_size=len(tokenizer))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + 1000)
            module = config.build()
        folder = self.folder / "random"
        bases.save(
            module, folder, config=config, tokenizer=tokenizer, pooling="mean", max_length=202
        )
        return bases.load(folder, device=self.recipe.device)

    def few_labels(
        self, name: str, data: MoleculeData, pretrained: bases.Base, random: bases.Base
    ) -> list[Row]:
        """Every way to learn from few labels, on one set."""
        part = few(data, self.recipe.labels, self.seed)
        rows = []
        for method, tuner in tuners(self.recipe).items():
            base = random if method == "scratch" else pretrained
            numbers = self.learn(base, tuner, part)
            self.progress(f"seed {self.seed}, {name}, few labels, {method}: {numbers}")
            rows += self._rows(f"{name}, few labels", method, numbers)
        return rows

    def learn(self, base: bases.Base, tuner: Tuner, part: Few) -> dict[str, float]:
        """Return measures of the stored delta on the test rows, and its bytes."""
        delta, _ = self.chosen(base, tuner, part)
        path = self.folder / "delta.safetensors"
        size = save(delta, path)
        found = evaluate_delta(base, load(path), part.test, metrics=MEASURES)
        return {**found, "r2": 100 * found["r2"], "bytes": float(size)}

    def chosen(self, base: bases.Base, tuner: Tuner, part: Few) -> tuple[Delta, dict[str, float]]:
        """Return the delta of the best step by the validation rows, and its measures on them."""
        config = TaskConfig(
            inputs=("smiles",),
            label="value",
            kind="regression",
            metrics=MEASURES,
        )
        tables = {"train": part.train, "eval": part.valid}
        task = task_from_tables(base, tables, config, batch_size=32, seed=self.seed)
        adaptation = start(base, task, tuner, seed=self.seed)
        every = max(1, self.recipe.steps // 10)
        budget = TrainConfig(
            steps=self.recipe.steps, eval_every=every, keep_best=True, save_every=0
        )
        fit(adaptation, task, budget)
        return finish(adaptation, task)

    def frozen(
        self, name: str, data: MoleculeData, pretrained: bases.Base, random: bases.Base
    ) -> list[Row]:
        """A linear model on fixed features of all molecules of one set."""
        smiles = [str(text) for text in data.table["smiles"]]
        split = split_molecules(smiles, "random", (0.8, 0.1, 0.1), self.seed)
        targets = np.asarray(data.table["value"], dtype=np.float64)
        features: dict[str, Any] = {
            "pretrained": Embedder(pretrained, ("mean", "max")).canonical(smiles),
            "random init": Embedder(random, ("mean", "max")).canonical(smiles),
            "bag of tokens": token_counts(smiles),
        }
        rows = []
        for method, x in features.items():
            found = probe(x, targets, split, "regression")
            numbers = {"r2": 100 * found["r2"], "rmse": found["rmse"], "mae": found["mae"]}
            self.progress(f"seed {self.seed}, {name}, frozen, {method}: {numbers}")
            rows += self._rows(f"{name}, frozen", method, numbers)
        return rows

    def nearness(
        self, name: str, data: MoleculeData, pretrained: bases.Base, random: bases.Base
    ) -> list[Row]:
        """How attention between atoms goes with the bonds between them, in the best head."""
        smiles = [str(text) for text in data.table["smiles"]][: self.recipe.looked_at]
        rows = []
        for method, base in (("pretrained", pretrained), ("random init", random)):
            found = distance_correlation([attention_map(base, text) for text in smiles])
            numbers = {"best head": float(found.max()), "mean over heads": float(found.mean())}
            self.progress(f"seed {self.seed}, {name}, attention, {method}: {numbers}")
            rows += self._rows(f"{name}, attention and bonds", method, numbers)
        return rows

    def _rows(self, setting: str, method: str, numbers: Mapping[str, float]) -> list[Row]:
        return [Row(setting, method, m, self.seed, float(x)) for m, x in numbers.items()]


MECHANISMS: tuple[Rule, ...] = (
    AtMost(
        "linear-equals-quadratic",
        "Linear attention equals its quadratic form to 1e-5 in float32, causal and not.",
        "fp32 error",
        1e-5,
    ),
    AtMost(
        "linear-equals-quadratic-fp64",
        "Linear attention equals its quadratic form to 1e-10 in float64, causal and not.",
        "fp64 error",
        1e-10,
    ),
    AtMost(
        "rotary-is-a-rotation",
        "Rotary positions equal multiplication by complex exponentials to 1e-10.",
        "rotary error",
        1e-10,
    ),
    AtMost(
        "features-estimate-their-kernel",
        "200,000 random features estimate half the arc-cosine kernel to 3 %.",
        "kernel error",
        0.03,
    ),
    Equals(
        "tokenizer-restores",
        "The tokenizer gives every molecule of the corpus back as it was.",
        "not restored",
        0.0,
    ),
    AtMost(
        "operations-are-linear",
        "Operations of linear attention grow with the length to the power 1.2 at most.",
        "exponent of operations",
        1.2,
    ),
)

_FROZEN = "A linear model on frozen features of the pretrained base beats that on "
DIFFERENCES: tuple[Rule, ...] = (
    *(
        Beats(
            f"frozen-{name.split()[0]}-over-{key}",
            f"{_FROZEN}{what} by {least:g} points of R2 on {name}.",
            f"{name}, frozen",
            "pretrained",
            baseline,
            least,
            metric="r2",
        )
        for name, key, baseline, what, least in (
            ("lipophilicity", "random", "random init", "features of random weights", 5),
            ("lipophilicity", "counts", "bag of tokens", "counts of tokens", 8),
            ("qm8 E1", "random", "random init", "features of random weights", 1),
            ("qm8 E1", "counts", "bag of tokens", "counts of tokens", 10),
        )
    ),
    *(
        Beats(
            f"few-labels-{name.split()[0]}",
            f"Fine-tuned on 300 labels of {name}, the pretrained base is not behind one from "
            "scratch.",
            f"{name}, few labels",
            "pretrained",
            "scratch",
            0.0,
            metric="r2",
        )
        for name in ("lipophilicity", "qm8 E1")
    ),
    *(
        Beats(
            f"attention-knows-bonds-{name.split()[0]}",
            "In the best head, attention between atoms follows their nearness along bonds: its "
            f"correlation is 0.2 above that of random weights on {name}.",
            f"{name}, attention and bonds",
            "pretrained",
            "random init",
            0.2,
            metric="best head",
        )
        for name in ("lipophilicity", "qm8 E1")
    ),
    AtMost(
        "time-is-linear",
        "Time of linear attention grows with the length to the power 1.2 at most.",
        "exponent of time",
        1.2,
        kind="difference",
    ),
)

CLAIM = Claim(
    name="molformer",
    system="molformer",
    sentence=(
        "Masked-language pretraining of a linear-attention encoder on unlabelled SMILES gives "
        "features that a linear model reads properties from better than from random features or "
        "counts of tokens, and helps where labels are few."
    ),
    rules=(*MECHANISMS, *DIFFERENCES),
    run=run,
)
