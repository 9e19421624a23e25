"""Every step by the name that a configuration uses. A new step is one file and one line here."""

from __future__ import annotations

from graftwork.steps._plain_sum import PlainSumConfig
from graftwork.steps._step import StepConfig

STEPS: dict[str, type[StepConfig]] = {
    "plain_sum": PlainSumConfig,
}
"""Name -> the frozen config that builds the step."""
