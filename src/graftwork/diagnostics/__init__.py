"""Diagnostics: what deltas have learnt, and how deltas of one base relate."""

from graftwork.diagnostics._low_rank import Amplification as Amplification
from graftwork.diagnostics._low_rank import LowRankReport as LowRankReport
from graftwork.diagnostics._low_rank import amplification as amplification
from graftwork.diagnostics._low_rank import diagnose_low_rank as diagnose_low_rank
from graftwork.diagnostics._low_rank import random_similarity as random_similarity
from graftwork.diagnostics._low_rank import subspace_similarity as subspace_similarity

__all__ = [
    "Amplification",
    "LowRankReport",
    "amplification",
    "diagnose_low_rank",
    "random_similarity",
    "subspace_similarity",
]
