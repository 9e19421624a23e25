"""Tasks: signatures, streams, evaluators, readers and generated data."""

from graftwork._batch import Batch as Batch
from graftwork.tasks._array_readers import arrays as arrays
from graftwork.tasks._array_readers import image_folder as image_folder
from graftwork.tasks._call_spec import Ports as Ports
from graftwork.tasks._call_spec import TaskBase as TaskBase
from graftwork.tasks._calls import CALLS as CALLS
from graftwork.tasks._calls import Call as Call
from graftwork.tasks._class_stream import ClassStream as ClassStream
from graftwork.tasks._comparisons import COMPARISON_LABELS as COMPARISON_LABELS
from graftwork.tasks._comparisons import COMPARISON_SPLITS as COMPARISON_SPLITS
from graftwork.tasks._comparisons import COMPARISON_TYPES as COMPARISON_TYPES
from graftwork.tasks._comparisons import comparison_capacity as comparison_capacity
from graftwork.tasks._comparisons import comparisons as comparisons
from graftwork.tasks._config import TaskConfig as TaskConfig
from graftwork.tasks._encoded import ArrayInput as ArrayInput
from graftwork.tasks._encoded import Encoded as Encoded
from graftwork.tasks._evaluator import DEFAULT_METRICS as DEFAULT_METRICS
from graftwork.tasks._evaluator import Evaluator as Evaluator
from graftwork.tasks._foreign import ForeignInput as ForeignInput
from graftwork.tasks._foreign import class_stream as class_stream
from graftwork.tasks._foreign import foreign_task as foreign_task
from graftwork.tasks._foreign import width_of as width_of
from graftwork.tasks._language_input import LanguageInput as LanguageInput
from graftwork.tasks._make import make_task as make_task
from graftwork.tasks._make import task_from_tables as task_from_tables
from graftwork.tasks._metrics import METRICS as METRICS
from graftwork.tasks._metrics import Metric as Metric
from graftwork.tasks._metrics import Scored as Scored
from graftwork.tasks._pinned import permutation as permutation
from graftwork.tasks._pinned import words as words
from graftwork.tasks._pooling import FEATURES as FEATURES
from graftwork.tasks._pooling import POOLINGS as POOLINGS
from graftwork.tasks._pooling import pool as pool
from graftwork.tasks._predict import Predictor as Predictor
from graftwork.tasks._predict import evaluate_delta as evaluate_delta
from graftwork.tasks._predict import predict as predict
from graftwork.tasks._pseudo_labels import pseudo_labels as pseudo_labels
from graftwork.tasks._readers import read as read
from graftwork.tasks._scorer import Scorer as Scorer
from graftwork.tasks._sequence_evaluator import SequenceEvaluator as SequenceEvaluator
from graftwork.tasks._sequence_evaluator import scorer_for as scorer_for
from graftwork.tasks._sequence_metrics import SEQUENCE_METRICS as SEQUENCE_METRICS
from graftwork.tasks._sequence_metrics import SequenceMetric as SequenceMetric
from graftwork.tasks._signature import SEQUENCES as SEQUENCES
from graftwork.tasks._signature import Prediction as Prediction
from graftwork.tasks._signature import Signature as Signature
from graftwork.tasks._source import SourceFeatures as SourceFeatures
from graftwork.tasks._source import source_features as source_features
from graftwork.tasks._source import vocabulary_texts as vocabulary_texts
from graftwork.tasks._stream import GeneratorStream as GeneratorStream
from graftwork.tasks._stream import Sharded as Sharded
from graftwork.tasks._stream import Stateful as Stateful
from graftwork.tasks._stream import Stream as Stream
from graftwork.tasks._stream import TableStream as TableStream
from graftwork.tasks._stream import shard as shard
from graftwork.tasks._table import Table as Table
from graftwork.tasks._task import PortSpec as PortSpec
from graftwork.tasks._task import Task as Task

__all__ = [
    "CALLS",
    "COMPARISON_LABELS",
    "COMPARISON_SPLITS",
    "COMPARISON_TYPES",
    "DEFAULT_METRICS",
    "FEATURES",
    "METRICS",
    "POOLINGS",
    "SEQUENCES",
    "SEQUENCE_METRICS",
    "ArrayInput",
    "Batch",
    "Call",
    "ClassStream",
    "Encoded",
    "Evaluator",
    "ForeignInput",
    "GeneratorStream",
    "LanguageInput",
    "Metric",
    "PortSpec",
    "Ports",
    "Prediction",
    "Predictor",
    "Scored",
    "Scorer",
    "SequenceEvaluator",
    "SequenceMetric",
    "Sharded",
    "Signature",
    "SourceFeatures",
    "Stateful",
    "Stream",
    "Table",
    "TableStream",
    "Task",
    "TaskBase",
    "TaskConfig",
    "arrays",
    "class_stream",
    "comparison_capacity",
    "comparisons",
    "evaluate_delta",
    "foreign_task",
    "image_folder",
    "make_task",
    "permutation",
    "pool",
    "predict",
    "pseudo_labels",
    "read",
    "scorer_for",
    "shard",
    "source_features",
    "task_from_tables",
    "vocabulary_texts",
    "width_of",
    "words",
]
