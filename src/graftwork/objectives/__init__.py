"""Losses, per row, one file each."""

from graftwork.objectives._types import Model as Model
from graftwork.objectives._types import Objective as Objective
