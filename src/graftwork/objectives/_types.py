"""What an objective is: a pure function of a model and a batch that gives one loss a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from graftwork._batch import Batch

Model = Callable[[Batch], Any]
"""The adapted model with its ports: batch -> outputs, e.g. logits `(B, labels)`."""
Objective = Callable[[Model, Batch], Tensor]
"""A pure function: model, batch -> losses `(B,)`, one a row."""
