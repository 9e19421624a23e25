"""The tuners by name: adding one is a line here."""

from __future__ import annotations

from graftwork.tuning._bitfit import BitFit
from graftwork.tuning._bottlenecks import Bottlenecks
from graftwork.tuning._diff_pruning import DiffPruning
from graftwork.tuning._dora import DoRA
from graftwork.tuning._fisher_mask import FisherMask
from graftwork.tuning._full import Full
from graftwork.tuning._gradient_mask import GradientMask
from graftwork.tuning._head import Head
from graftwork.tuning._ia3 import IA3
from graftwork.tuning._last_layer import LastLayer
from graftwork.tuning._lora import LoRA
from graftwork.tuning._low_rank_sparse import LowRankSparse
from graftwork.tuning._magnitude import Magnitude
from graftwork.tuning._prompts import PrefixTuning, PromptTuning
from graftwork.tuning._random_mask import RandomMask
from graftwork.tuning._tuner import Tuner

TUNERS: dict[str, type[Tuner]] = {
    "full": Full,
    "head": Head,
    "last_layer": LastLayer,
    "random_mask": RandomMask,
    "magnitude": Magnitude,
    "gradient_mask": GradientMask,
    "fisher_mask": FisherMask,
    "diff_pruning": DiffPruning,
    "lora": LoRA,
    "dora": DoRA,
    "ia3": IA3,
    "bitfit": BitFit,
    "low_rank_sparse": LowRankSparse,
    "bottlenecks": Bottlenecks,
    "prompt": PromptTuning,
    "prefix": PrefixTuning,
}
"""Name in configurations and on the command line -> config class."""
