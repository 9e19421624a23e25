"""The configuration of a run: YAML keys and command-line flags are its fields, one to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from graftwork._errors import ConfigError, GraftworkError
from graftwork.steps import STEPS, PlainSumConfig, StepConfig
from graftwork.tasks import TaskConfig
from graftwork.training._plain import Families, from_plain, to_plain
from graftwork.training._progress import Mode
from graftwork.training._train_config import TrainConfig
from graftwork.training._yaml import dump_yaml, parse_yaml, read_yaml
from graftwork.tuning import TUNERS, RandomMask, StoredType, Tuner

FAMILIES: Families = {Tuner: TUNERS, StepConfig: STEPS}
"""Fields that hold one of several configs; the key "name" says which."""


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """How the base is loaded; see `graftwork.bases.load`."""

    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    """Cast the weights to this type; empty keeps the stored one."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ...; "auto" takes a GPU where there is one."""
    pooling: str | None = None
    """"mean", "cls", "max" or "last"; empty takes what the base's folder states."""
    max_length: int | None = None
    """Longest input in tokens; empty takes what the base states."""
    quantise: Literal["int8"] | None = None
    """"int8" holds the weights of linear layers in 8 bits; needs the extra `int8`."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How a run is watched; nothing here changes the delta."""

    progress: Mode = "auto"
    """"bars", "lines", "silent"; "auto" shows bars on a terminal and lines elsewhere."""
    tensorboard: bool = False
    """Whether to write event files for TensorBoard into the run's folder."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run depends on.

    Example:
        >>> config = RunConfig(seed=3, train=TrainConfig(steps=200))
        >>> from_yaml(to_yaml(config)) == config
        True
    """

    base: str = "minilm"
    """"minilm", a Hugging Face id, or a local folder."""
    base_options: BaseOptions = field(default_factory=BaseOptions)
    """How the base is loaded."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The data and how the base reads them."""
    tuner: Tuner = field(default_factory=RandomMask)
    """What parametrises the delta: `name` of `TUNERS` and its fields. A seeded random mask is the
    default: it stores no positions and is hard to beat once its rate is tuned."""
    step: StepConfig = field(default_factory=PlainSumConfig)
    """How losses become updates: `name` of `STEPS` and its fields."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Budget, precision, evaluation, saving."""
    targets: tuple[str, ...] | None = None
    """Patterns of the tensors to tune, e.g. "encoder.*.weight"; empty takes all that the task's
    loss reaches."""
    exclude: tuple[str, ...] = ()
    """Patterns to leave out."""
    continue_from: str | None = None
    """File or run folder of a delta of this base to begin at, trained by a tuner like this one;
    empty begins at the base. A head of another shape begins anew."""
    stored: StoredType = "float16"
    """Type of the stored values; metrics are measured after rounding to it."""
    seed: int = 0
    """Root of every random draw."""
    out: str = "runs/delta"
    """The run's folder."""
    log: LogConfig = field(default_factory=LogConfig)
    """Progress and TensorBoard."""


def to_tree(config: RunConfig) -> dict[str, Any]:
    """Return the config as nested dicts, lists and plain values.

    Raises:
        ConfigError: a value that no file can hold, such as a function that forms groups.
    """
    tree: dict[str, Any] = to_plain(config, FAMILIES)
    return tree


def from_tree(tree: Any) -> RunConfig:
    """Return the config that `to_tree` gave as `tree`; keys that are absent have their default.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible value; names the key's path and
            the closest known key. Or there is nothing: an empty file is an accident, no wish for
            the default run.
    """
    if tree is None:
        raise ConfigError(
            "it holds nothing; `graftwork adapt --print-config > run.yaml` writes a whole "
            "configuration"
        )
    return from_plain(RunConfig, tree, FAMILIES)


def to_yaml(config: RunConfig) -> str:
    """Return the config as YAML with every field."""
    return dump_yaml(to_tree(config))


def from_yaml(source: str | Path) -> RunConfig:
    """Return the config of YAML text, or of a YAML file given as a `Path`.

    Raises:
        ConfigError: as `from_tree`, or the file cannot be read, or is not YAML.
    """
    if not isinstance(source, Path):
        return from_tree(parse_yaml(source))
    tree = read_yaml(source)
    try:
        return from_tree(tree)
    except GraftworkError as error:
        error.args = (f"{source}: {error}", *error.args[1:])
        raise
