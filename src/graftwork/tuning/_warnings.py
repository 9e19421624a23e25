"""What a tuner warns of: a run that goes on, but not as it was meant to."""

from __future__ import annotations


class TuningWarning(UserWarning):
    """Training went in a way that makes the delta worse than it could be; says what to change."""
