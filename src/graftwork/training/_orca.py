"""ORCA: adapt a text base to foreign data, aligning the input before anything else is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from graftwork._errors import ConfigError, InputError
from graftwork.bases import Base
from graftwork.nn import OutputNorm
from graftwork.objectives import DISTANCES, Align, DatasetDistance, Distance
from graftwork.steps import AlignedSumConfig, PlainSumConfig
from graftwork.tasks import (
    ForeignInput,
    SourceFeatures,
    Table,
    Task,
    class_stream,
    foreign_task,
    source_features,
)
from graftwork.training._adapt import load_base, provenance
from graftwork.training._adaptation import Adaptation
from graftwork.training._config import FAMILIES, RunConfig, from_tree, to_tree
from graftwork.training._context import Settings
from graftwork.training._distributed import World
from graftwork.training._driver import Fitted
from graftwork.training._finish import finish
from graftwork.training._outcome import DeltaOutcome, RunResult
from graftwork.training._plain import from_plain, to_plain
from graftwork.training._run import Conclusion, Prepared, run
from graftwork.training._start import start
from graftwork.training._train_config import TrainConfig, stage_steps
from graftwork.training._yaml import parse_yaml
from graftwork.tuning import Aligned


@dataclass(frozen=True, kw_only=True)
class OrcaConfig:
    """How foreign data are embedded and aligned; what comes after is the run's own config.

    Raises:
        ConfigError: a value is out of range.
    """

    updates: int = 60
    """Updates of alignment, before those of the run; 0: none, naive fine-tuning."""
    align_rate: float = 1e-3
    """Learning rate of the input port while it is aligned. At three times this rate 60 updates took
    10 points of accuracy on digits in a trial: rows lose what told them apart."""
    input_rate: float = 1e-3
    """Learning rate of the input port afterwards."""
    positions: int = 16
    """Most positions of the base that a row becomes."""
    layout: Literal["series", "field"] | None = None
    """What arrays with two axes are: "series" (channels, length) or "field"; empty: a field."""
    distance: Literal["otdd", "mmd", "l2", "none"] = "otdd"
    """"otdd": optimal transport of rows and classes; "mmd" and "l2" look at rows only; "none": no
    alignment, like 0 updates (the ablation of Shen et al.)."""
    entropic: bool = False
    """Distance "otdd": whether transport is entropic (GeomLoss, as in the paper) instead of exact
    (POT). Of some hundred rows exact is the faster and its gradients are right."""
    gaussian: bool = False
    """Distance "otdd": whether classes compare as Gaussians instead of by their rows."""
    classwise: bool = False
    """Distance "otdd": whether one class goes at a time, as in the paper's program; classes then
    collapse sooner."""
    align_rows: int = 256
    """Rows of a batch of alignment, every class in its share."""
    texts: str | None = None
    """File with one text a line that stands for what the base knows; empty: words it knows."""
    clusters: int = 10
    """Classes of the texts, and of targets that are numbers."""
    match: bool = True
    """Whether the port starts with the mean and spread of the base's own embeddings."""
    look_every: int = 5
    """Updates between looks at distance and separability."""
    patience: int = 4
    """Looks without a lower distance before alignment ends; 0 never."""
    floor: float = 0.25
    """Share of the first separability below which classes collapse and alignment ends."""

    def __post_init__(self) -> None:
        if self.updates < 0 or self.align_rows < 2 or self.clusters < 1:
            raise ConfigError(
                "updates >= 0, align_rows >= 2 and clusters >= 1, not "
                f"{self.updates}, {self.align_rows} and {self.clusters}"
            )
        if self.distance not in (*DISTANCES, "none"):
            known = [*DISTANCES, "none"]
            raise ConfigError(f"distance: one of {known}, not {self.distance!r}")
        if self.layout not in (None, "series", "field"):
            raise ConfigError(f"layout: 'series', 'field' or empty, not {self.layout!r}")

    @property
    def steps(self) -> int:
        """Updates of alignment, none where no distance is minimised."""
        return 0 if self.distance == "none" else self.updates

    @property
    def function(self) -> Distance:
        """The distance that is minimised.

        Raises:
            ConfigError: there is none.
        """
        if self.distance == "none":
            raise ConfigError("distance: nothing is aligned by 'none'")
        if self.distance != "otdd":
            return DISTANCES[self.distance]
        return DatasetDistance(
            solver="sinkhorn" if self.entropic else "exact",
            classes="gaussian" if self.gaussian else "samples",
            classwise=self.classwise,
        )


@dataclass(frozen=True, kw_only=True)
class OrcaFields:
    """What the configuration of a run of `orca` has beside the fields of `RunConfig`."""

    align: OrcaConfig = field(default_factory=OrcaConfig)
    """How foreign data are embedded and aligned."""


def orca(
    config: RunConfig,
    align: OrcaConfig | None = None,
    *,
    resume: bool = False,
    base: Base | None = None,
    tables: Mapping[str, Table] | None = None,
) -> RunResult[DeltaOutcome]:
    """Adapt a text base to foreign data: align, then refine (Shen et al., 2023).

    A port embeds each row as positions of the base. Stage "align" trains it alone, until its
    features are near those of texts; then the run's tuner refines the base, with port and head. The
    result is one delta: the port, the head and what the tuner changed. We deviate from the paper:
    all classes are aligned at once, alignment ends before classes collapse, the rows that decide
    what is best are never those that are learnt from, and any tuner refines.

    Arguments:
        config: data, base, tuner, steps of the refinement. The default tuner is sparse; `Full()`
            is the paper's.
        align: how to embed and align.
        resume: go on with the run in the folder where there is one.
        base: already loaded as `config` says.
        tables: rows in the place of files, by stream: "train", "eval".

    Raises:
        StorageError: the folder holds another run, is in use, or the disk is full.
        UnsupportedError: the base takes no inputs_embeds.
        InputError: the data are wrong; names row, value and fix.
        MissingDependencyError: the extra `transport` is absent.

    Example:
        >>> task = TaskConfig(data="wine.csv", label="class")  # doctest: +SKIP
        >>> orca(RunConfig(task=task, out="runs/wine")).metrics["accuracy"]  # doctest: +SKIP
    """
    align = align or OrcaConfig()

    def prepare(world: World) -> Prepared[DeltaOutcome]:
        del world  # the driver shares streams out
        return prepare_orca(config, align, base or load_base(config), tables)

    settings = orca_tree(config, align)
    if tables is not None:
        settings["task"]["data"] = {name: table.digest for name, table in tables.items()}
    return run(
        config.out,
        settings,
        prepare,
        DeltaOutcome,
        resume=resume,
        log=config.log,
    )


def prepare_orca(
    config: RunConfig, align: OrcaConfig, base: Base, tables: Mapping[str, Table] | None = None
) -> Prepared[DeltaOutcome]:
    """Return the training that `orca` runs, without a folder."""
    task = foreign_task(
        base,
        config.task,
        ForeignInput(positions=align.positions, layout=align.layout),
        tables=tables,
        batch_size=config.train.batch_size or 32,
        seed=config.seed,
    )
    source = _source(base, align, config.seed) if align.steps or align.match else None
    if align.steps and source is not None:
        task = with_alignment(base, task, source, align, config.seed)
    train, share = _budget(config, align, task)
    tuner = Aligned(
        inner=config.tuner,
        align_share=share,
        align_lr=align.align_rate,
        input_lr=align.input_rate,
    )
    adaptation = start(
        base, task, tuner, targets=config.targets, exclude=config.exclude, seed=config.seed
    )
    norm = getattr(adaptation.ports["input"], "norm", None)
    if align.match and source is not None and isinstance(norm, OutputNorm):
        norm.match(source.mean, source.deviation)
    return Prepared(
        trainee=adaptation,
        task=task,
        train=train,
        step=_step(config, align).build(),
        conclude=lambda fitted: _conclude(config, align, adaptation, task, fitted),
        go_on=f"graftwork adapt --recipe orca --config {Path(config.out)}/config.yaml --resume",
    )


def with_alignment(
    base: Base, task: Task, source: SourceFeatures, align: OrcaConfig, seed: int = 0
) -> Task:
    """Return `task` with the stream and the objective "align"."""
    stream = class_stream(base, task, rows=align.align_rows, clusters=align.clusters, seed=seed)
    probe = stream.draw()
    stream.seek(0)
    objective = Align(source=source.labelled, distance=align.function, probe=probe)
    return replace(
        task,
        streams={**task.streams, "align": stream},
        objectives={**task.objectives, "align": objective},
    )


def orca_from_yaml(path: Path) -> tuple[RunConfig, OrcaConfig]:
    """Return both configs of a run of `orca` from its config.yaml.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: keys and values are needed")
    rest = {key: value for key, value in tree.items() if key != "align"}
    return from_tree(rest), from_plain(OrcaConfig, tree.get("align") or {}, FAMILIES, "align")


def orca_tree(config: RunConfig, align: OrcaConfig) -> dict[str, Any]:
    """Return both configs as one plain tree; `orca_from_yaml` reads it."""
    return {**to_tree(config), "align": to_plain(align, FAMILIES)}


def _source(base: Base, align: OrcaConfig, seed: int) -> SourceFeatures | None:
    if base.tokenizer is None and not align.steps:
        return None
    texts = None
    if align.texts is not None:
        try:
            lines = Path(align.texts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the texts {align.texts!r}: {error}") from error
        texts = [line.strip() for line in lines if line.strip()]
    return source_features(base, texts, classes=align.clusters, seed=seed)


def _budget(config: RunConfig, align: OrcaConfig, task: Task) -> tuple[TrainConfig, float]:
    """Return the run's budget with alignment before it, and alignment's share."""
    steps = sum(stage_steps(config.train, config.tuner.stages, task.streams["train"]))
    total = steps + align.steps
    return replace(config.train, steps=total, epochs=None), align.steps / total


def _step(config: RunConfig, align: OrcaConfig) -> AlignedSumConfig:
    if not isinstance(config.step, PlainSumConfig):
        raise ConfigError(
            f"step: alignment goes with plain_sum, not {type(config.step).__name__}; leave it out"
        )
    return AlignedSumConfig(
        every=align.look_every, patience=align.patience, floor=align.floor, sum=config.step
    )


def _conclude(
    config: RunConfig, align: OrcaConfig, adaptation: Adaptation, task: Task, fitted: Fitted
) -> Conclusion[DeltaOutcome]:
    made = {
        **provenance(config, adaptation, task, fitted),
        "align": to_plain(align, FAMILIES),
    }
    delta, metrics = finish(
        adaptation,
        task,
        stored=config.stored,
        provenance=made,
        settings=Settings(
            seed=config.seed,
            eval_batch_size=config.train.eval_batch_size,
            device=adaptation.device,
        ),
    )
    return Conclusion(
        outcome=DeltaOutcome(delta),
        metrics=metrics,
        summary={"unreached": list(adaptation.unreached)},
    )
