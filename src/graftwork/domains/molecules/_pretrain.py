"""The recipe: SMILES strings in, a base out, by masked language modelling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graftwork import bases
from graftwork.domains.molecules._masking import (
    MaskedTokenScorer,
    Masking,
    masked_token_loss,
    predict_hidden,
)
from graftwork.domains.molecules._report import MoleculeReport, check_molecules
from graftwork.domains.molecules._stream import BUCKETS, MaskedStream
from graftwork.domains.molecules._tokenizer import MAX_LENGTH, smiles_tokenizer, vocabulary_of
from graftwork.errors import ConfigError, InputError
from graftwork.models import Molformer, MolformerConfig
from graftwork.steps import PlainSum, PlainSumConfig
from graftwork.tasks import Task, permutation, read
from graftwork.training import (
    BaseOutcome,
    Conclusion,
    Fitted,
    LogConfig,
    Prepared,
    RunResult,
    TrainConfig,
    Whole,
    derive,
    run,
)
from graftwork.tuning import Stage

STAGE = "masked tokens"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that the pretraining of a base on molecules depends on.

    The defaults are for two cores and minutes; the published run has the defaults of
    `MolformerConfig`, 1.1 billion molecules, LAMB at 1.6e-4 (paper) or 2.4e-4 (script; which of the
    two was used is unsure) and batches of 12,800 or more on 16 GPUs.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> PretrainConfig(data="hiv.csv", train=TrainConfig(steps=300)).model.width
        128
    """

    data: str
    """A file with a column of SMILES: CSV, TSV, JSONL or Parquet."""
    column: str = "smiles"
    """The column."""
    start_from: str | None = None
    """Folder of a base to go on from, with its tokenizer and sizes; None starts anew."""
    model: MolformerConfig = field(
        default_factory=lambda: MolformerConfig(width=128, layers=4, heads=4, redraw="never")
    )
    """Sizes of a new model; `vocab_size` is set from the data. One Omega for all calls: with a
    fresh one each call, a small model learns more slowly (see the documentation for figures)."""
    stereo: bool = False
    """Whether stereochemistry and isotopes are kept. The published model has neither."""
    max_length: int = MAX_LENGTH
    """Longest molecule in tokens, the two ends counted; longer ones are left out and reported."""
    masking: Masking = field(default_factory=Masking)
    """Which tokens are hidden, and how."""
    buckets: tuple[int, ...] = BUCKETS
    """Token counts at which the next bucket of lengths begins."""
    batch_size: int = 64
    """Molecules of a batch."""
    learning_rate: float = 1e-3
    """Peak rate of Adam."""
    step: PlainSumConfig = field(
        default_factory=lambda: PlainSumConfig(schedule="cosine", warmup=0.05, betas=(0.9, 0.99))
    )
    """How the loss becomes updates. Published: LAMB at a constant rate; LAMB is made for batches of
    thousands, and here AdamW with a falling rate takes its place."""
    valid_share: float = 0.02
    """Part of the molecules, drawn at random, on which the loss is measured."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=2000, eval_every=500))
    """Budget, precision, evaluation, saving."""
    pooling: str = "mean"
    """How the base's users make one vector of positions, unless they say otherwise."""
    seed: int = 0
    """Root of every random draw."""
    device: str = "auto"
    """"cpu", "cuda", ...; "auto" takes a GPU where there is one."""
    out: str = "runs/molformer"
    """The run's folder."""
    log: LogConfig = field(default_factory=LogConfig)
    """Progress and TensorBoard."""

    def __post_init__(self) -> None:
        if not 0 < self.valid_share < 1:
            raise ConfigError(f"valid_share: between 0 and 1, not {self.valid_share}")
        if self.train.batch_size is not None:
            raise ConfigError("train.batch_size: set batch_size beside it instead")


def pretrain(
    config: PretrainConfig, *, resume: bool = False, smiles: Sequence[str] | None = None
) -> RunResult[BaseOutcome]:
    """Pretrain a base in the folder `config.out`: watched, saved, resumed exactly.

    The run's folder then holds `base`, which `graftwork.bases.load` reads and deltas adapt. What
    was left out of the file or altered, and why, stands in result.json.

    Args:
        config: everything that the run depends on.
        resume: go on with the run in the folder where there is one; a finished run is returned.
        smiles: canonical molecules in the place of the file.

    Raises:
        InputError: the data hold no molecules.
        StorageError: the folder holds another run, is in use, or the disk is full.
        ConfigError: the run in the folder has another configuration.
        TrainingError: a loss became NaN; the last good checkpoint is kept.
        RunInterrupted: Ctrl-C; a checkpoint was saved.

    Example:
        >>> result = pretrain(PretrainConfig(data="hiv.csv"))  # doctest: +SKIP
        >>> result.metrics["loss"], result.outcome.base  # doctest: +SKIP
    """
    settings = json.loads(json.dumps(asdict(config)))
    return run(
        config.out,
        settings,
        lambda _: _prepare(config, smiles),
        BaseOutcome,
        resume=resume,
        log=config.log,
    )


def _prepare(config: PretrainConfig, smiles: Sequence[str] | None) -> Prepared[BaseOutcome]:
    module, sizes, tokenizer, molecules, report = _start(config, smiles)
    stage = Stage(STAGE, 1.0, {"values": config.learning_rate})
    whole = Whole(module, stage, predict_hidden, seed=config.seed)
    task = _task(config, molecules, tokenizer)

    def conclude(fitted: Fitted) -> Conclusion[BaseOutcome]:
        del fitted
        module.eval()
        metrics = task.evaluate(whole, "eval", config.train.eval_batch_size)

        def write(folder: Path) -> None:
            bases.save(
                module,
                folder,
                config=sizes,
                tokenizer=tokenizer,
                pooling=config.pooling,
                max_length=config.max_length,
            )

        counted = {} if report is None else {"molecules": _counts(report)}
        return Conclusion(outcome=BaseOutcome(save=write), metrics=metrics, summary=counted)

    note = f"{len(molecules)} molecules" if report is None else str(report)
    return Prepared(
        trainee=whole,
        task=task,
        train=config.train,
        step=PlainSum(config.step),
        conclude=conclude,
        notes=[{"step": 0, "stage": STAGE, "note": note}],
    )


def _start(
    config: PretrainConfig, smiles: Sequence[str] | None
) -> tuple[Molformer, MolformerConfig, Any, list[str], MoleculeReport | None]:
    """Return module, its config, tokenizer, different molecules, and the report on the file."""
    report = None
    if smiles is None:
        values = read(config.data)[config.column]
        report = check_molecules(
            list(values),
            stereo=config.stereo,
            max_length=config.max_length,
            source=Path(config.data).name,
        )
        smiles = report.smiles
    molecules = list(dict.fromkeys(smiles))
    if len(molecules) < 2:
        raise InputError(f"{report or 'smiles'}: fewer than two different molecules")
    if config.start_from is None:
        tokenizer = smiles_tokenizer(vocabulary_of(molecules), max_length=config.max_length)
        sizes = replace(config.model, vocab_size=len(tokenizer), lm_head=True)
        with torch.random.fork_rng():
            torch.manual_seed(derive(config.seed, "molformer"))
            module = sizes.build()
    else:
        module, sizes, tokenizer = _go_on_from(config.start_from)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return module.to(device), sizes, tokenizer, molecules, report


def _go_on_from(folder: str) -> tuple[Molformer, MolformerConfig, Any]:
    module, sizes, tokenizer = bases.load_module(folder)
    if not isinstance(module, Molformer) or not isinstance(sizes, MolformerConfig):
        raise InputError(f"start_from: {folder} holds a {type(module).__name__}, no Molformer")
    if tokenizer is None or not sizes.lm_head:
        raise InputError(f"start_from: {folder} has no tokenizer, or no head of pretraining")
    return module, sizes, tokenizer


def _task(config: PretrainConfig, molecules: list[str], tokenizer: Any) -> Task:
    order = permutation(len(molecules), config.seed, "valid")
    count = max(1, round(config.valid_share * len(molecules)))
    valid, rest = np.sort(order[:count]), np.sort(order[count:])

    def stream(name: str, rows: Any) -> MaskedStream:
        return MaskedStream(
            smiles=[molecules[i] for i in rows],
            tokenizer=tokenizer,
            name=name,
            batch_size=config.batch_size,
            buckets=config.buckets,
            masking=config.masking,
            seed=config.seed,
        )

    return Task(
        signature=None,
        streams={"train": stream("train", rest), "eval": stream("eval", valid)},
        evaluator=MaskedTokenScorer(),
        objectives={"task": masked_token_loss},
    )


def _counts(report: MoleculeReport) -> dict[str, Any]:
    return {
        "rows": len(report),
        "kept": int(report.valid.sum()),
        "left_out": report.problems,
        "notes": report.notes,
        "first_left_out": list(report.lines())[:100],
    }
