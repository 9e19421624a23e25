"""Losses, per row, one file each."""

from graftwork.objectives._cross_entropy import cross_entropy as cross_entropy
from graftwork.objectives._squared_error import squared_error as squared_error
from graftwork.objectives._table import OBJECTIVES as OBJECTIVES
from graftwork.objectives._types import Model as Model
from graftwork.objectives._types import Objective as Objective

__all__ = ["OBJECTIVES", "Model", "Objective", "cross_entropy", "squared_error"]
