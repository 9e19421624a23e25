"""Losses, per row, one file each."""

from graftwork.objectives._absolute_error import absolute_error as absolute_error
from graftwork.objectives._align import DISTANCES as DISTANCES
from graftwork.objectives._align import Align as Align
from graftwork.objectives._align import Distance as Distance
from graftwork.objectives._align import DistanceName as DistanceName
from graftwork.objectives._align import Look as Look
from graftwork.objectives._align import separability as separability
from graftwork.objectives._binary_cross_entropy import (
    binary_cross_entropy as binary_cross_entropy,
)
from graftwork.objectives._cross_entropy import cross_entropy as cross_entropy
from graftwork.objectives._dataset_distance import DatasetDistance as DatasetDistance
from graftwork.objectives._dataset_distance import Labelled as Labelled
from graftwork.objectives._estimate import DistanceEstimate as DistanceEstimate
from graftwork.objectives._estimate import dataset_distance as dataset_distance
from graftwork.objectives._kernel_mmd import kernel_mmd as kernel_mmd
from graftwork.objectives._label_distance import exact_w2 as exact_w2
from graftwork.objectives._label_distance import gaussian_w2 as gaussian_w2
from graftwork.objectives._label_distance import sinkhorn_w2 as sinkhorn_w2
from graftwork.objectives._mmd import Kernel as Kernel
from graftwork.objectives._mmd import mmd as mmd
from graftwork.objectives._pairwise_l2 import pairwise_l2 as pairwise_l2
from graftwork.objectives._squared_error import squared_error as squared_error
from graftwork.objectives._table import OBJECTIVES as OBJECTIVES
from graftwork.objectives._token_cross_entropy import IGNORED as IGNORED
from graftwork.objectives._token_cross_entropy import (
    token_cross_entropy as token_cross_entropy,
)
from graftwork.objectives._types import Model as Model
from graftwork.objectives._types import Objective as Objective

__all__ = [
    "DISTANCES",
    "IGNORED",
    "OBJECTIVES",
    "Align",
    "DatasetDistance",
    "Distance",
    "DistanceEstimate",
    "DistanceName",
    "Kernel",
    "Labelled",
    "Look",
    "Model",
    "Objective",
    "absolute_error",
    "binary_cross_entropy",
    "cross_entropy",
    "dataset_distance",
    "exact_w2",
    "gaussian_w2",
    "kernel_mmd",
    "mmd",
    "pairwise_l2",
    "separability",
    "sinkhorn_w2",
    "squared_error",
    "token_cross_entropy",
]
