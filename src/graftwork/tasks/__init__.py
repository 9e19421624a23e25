"""Tasks: signatures, streams, evaluators, readers and generated data."""

from graftwork.tasks._calls import CALLS as CALLS
from graftwork.tasks._calls import Call as Call
from graftwork.tasks._calls import TaskBase as TaskBase
from graftwork.tasks._encoded import ArrayInput as ArrayInput
from graftwork.tasks._evaluator import DEFAULT_METRICS as DEFAULT_METRICS
from graftwork.tasks._evaluator import Evaluator as Evaluator
from graftwork.tasks._metrics import METRICS as METRICS
from graftwork.tasks._metrics import Metric as Metric
from graftwork.tasks._metrics import Scored as Scored
from graftwork.tasks._pooling import FEATURES as FEATURES
from graftwork.tasks._pooling import POOLINGS as POOLINGS
from graftwork.tasks._signature import Prediction as Prediction
from graftwork.tasks._signature import Signature as Signature
from graftwork.tasks._stream import GeneratorStream as GeneratorStream
from graftwork.tasks._stream import Stateful as Stateful
from graftwork.tasks._stream import Stream as Stream
from graftwork.tasks._stream import TableStream as TableStream
from graftwork.tasks._table import Table as Table
from graftwork.tasks._task import PortSpec as PortSpec
from graftwork.tasks._task import Task as Task

__all__ = [
    "CALLS",
    "DEFAULT_METRICS",
    "FEATURES",
    "METRICS",
    "POOLINGS",
    "ArrayInput",
    "Call",
    "Evaluator",
    "GeneratorStream",
    "Metric",
    "PortSpec",
    "Prediction",
    "Scored",
    "Signature",
    "Stateful",
    "Stream",
    "Table",
    "TableStream",
    "Task",
    "TaskBase",
]
