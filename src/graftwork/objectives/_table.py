"""The explicit table of objectives."""

from __future__ import annotations

from graftwork.objectives._absolute_error import absolute_error
from graftwork.objectives._binary_cross_entropy import binary_cross_entropy
from graftwork.objectives._cross_entropy import cross_entropy
from graftwork.objectives._squared_error import squared_error
from graftwork.objectives._token_cross_entropy import token_cross_entropy
from graftwork.objectives._types import Objective

OBJECTIVES: dict[str, Objective] = {
    "absolute_error": absolute_error,
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "token_cross_entropy": token_cross_entropy,
}
"""Objective name -> function."""
