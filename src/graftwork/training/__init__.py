"""A thin driver of a step over streams: budget, evaluation, checkpoints, exact resume, logging."""

from graftwork.training._adapt import adapt as adapt
from graftwork.training._adaptation import Adaptation as Adaptation
from graftwork.training._budget import REFERENCES as REFERENCES
from graftwork.training._budget import Fit as Fit
from graftwork.training._budget import fit_tuner as fit_tuner
from graftwork.training._checkpoint import Checkpoints as Checkpoints
from graftwork.training._compare import CompareConfig as CompareConfig
from graftwork.training._compare import compare as compare
from graftwork.training._compare import step_memory as step_memory
from graftwork.training._config import FAMILIES as FAMILIES
from graftwork.training._config import BaseOptions as BaseOptions
from graftwork.training._config import LogConfig as LogConfig
from graftwork.training._config import RunConfig as RunConfig
from graftwork.training._config import from_tree as from_tree
from graftwork.training._config import from_yaml as from_yaml
from graftwork.training._config import to_tree as to_tree
from graftwork.training._config import to_yaml as to_yaml
from graftwork.training._context import RunContext as RunContext
from graftwork.training._context import Settings as Settings
from graftwork.training._continue import continue_from as continue_from
from graftwork.training._distributed import World as World
from graftwork.training._distributed import current_world as current_world
from graftwork.training._distributed import joined as joined
from graftwork.training._driver import Fitted as Fitted
from graftwork.training._driver import fit as fit
from graftwork.training._finish import finish as finish
from graftwork.training._finish import measure as measure
from graftwork.training._folder import RunFolder as RunFolder
from graftwork.training._interrupt import RunInterrupted as RunInterrupted
from graftwork.training._orca import OrcaConfig as OrcaConfig
from graftwork.training._orca import OrcaFields as OrcaFields
from graftwork.training._orca import orca as orca
from graftwork.training._orca import orca_from_yaml as orca_from_yaml
from graftwork.training._orca import orca_tree as orca_tree
from graftwork.training._orca import prepare_orca as prepare_orca
from graftwork.training._orca import with_alignment as with_alignment
from graftwork.training._outcome import BaseOutcome as BaseOutcome
from graftwork.training._outcome import DeltaOutcome as DeltaOutcome
from graftwork.training._outcome import Outcome as Outcome
from graftwork.training._outcome import RunResult as RunResult
from graftwork.training._progress import progress as progress
from graftwork.training._recorder import History as History
from graftwork.training._recorder import Record as Record
from graftwork.training._recorder import Recorder as Recorder
from graftwork.training._recorder import Recorders as Recorders
from graftwork.training._recorder import TensorBoard as TensorBoard
from graftwork.training._recorder import read_records as read_records
from graftwork.training._run import Conclusion as Conclusion
from graftwork.training._run import Prepared as Prepared
from graftwork.training._run import run as run
from graftwork.training._seeds import derive as derive
from graftwork.training._start import start as start
from graftwork.training._train_config import TrainConfig as TrainConfig
from graftwork.training._train_config import share_steps as share_steps
from graftwork.training._trainee import Trainee as Trainee
from graftwork.training._whole import Whole as Whole
from graftwork.training._write_report import write_report as write_report

__all__ = [
    "FAMILIES",
    "REFERENCES",
    "Adaptation",
    "BaseOptions",
    "BaseOutcome",
    "Checkpoints",
    "CompareConfig",
    "Conclusion",
    "DeltaOutcome",
    "Fit",
    "Fitted",
    "History",
    "LogConfig",
    "OrcaConfig",
    "OrcaFields",
    "Outcome",
    "Prepared",
    "Record",
    "Recorder",
    "Recorders",
    "RunConfig",
    "RunContext",
    "RunFolder",
    "RunInterrupted",
    "RunResult",
    "Settings",
    "TensorBoard",
    "TrainConfig",
    "Trainee",
    "Whole",
    "World",
    "adapt",
    "compare",
    "continue_from",
    "current_world",
    "derive",
    "finish",
    "fit",
    "fit_tuner",
    "from_tree",
    "from_yaml",
    "joined",
    "measure",
    "orca",
    "orca_from_yaml",
    "orca_tree",
    "prepare_orca",
    "progress",
    "read_records",
    "run",
    "share_steps",
    "start",
    "step_memory",
    "to_tree",
    "to_yaml",
    "with_alignment",
    "write_report",
]
