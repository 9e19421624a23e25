"""Many deltas of one base at once: plan and run mixed batches."""

from graftwork.serving._executor import MixerConfig as MixerConfig
from graftwork.serving._mixer import Mixer as Mixer
from graftwork.serving._plan import Plan as Plan
from graftwork.serving._predictor import MixedPredictor as MixedPredictor
from graftwork.serving._prepared import Prepared as Prepared
from graftwork.serving._report import Report as Report
from graftwork.serving._residency import ReadAhead as ReadAhead
from graftwork.serving._residency import Residency as Residency
from graftwork.serving._residency import ResidencyStatistics as ResidencyStatistics

__all__ = [
    "MixedPredictor",
    "Mixer",
    "MixerConfig",
    "Plan",
    "Prepared",
    "ReadAhead",
    "Report",
    "Residency",
    "ResidencyStatistics",
]
