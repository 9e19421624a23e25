"""How losses become one update of the trainable values."""

from graftwork.steps._aligned_sum import AlignedSum as AlignedSum
from graftwork.steps._aligned_sum import AlignedSumConfig as AlignedSumConfig
from graftwork.steps._plain_sum import PlainSum as PlainSum
from graftwork.steps._plain_sum import PlainSumConfig as PlainSumConfig
from graftwork.steps._plain_sum import rate as rate
from graftwork.steps._step import Context as Context
from graftwork.steps._step import Step as Step
from graftwork.steps._step import StepConfig as StepConfig
from graftwork.steps._tables import STEPS as STEPS

__all__ = [
    "STEPS",
    "AlignedSum",
    "AlignedSumConfig",
    "Context",
    "PlainSum",
    "PlainSumConfig",
    "Step",
    "StepConfig",
    "rate",
]
