"""Tuners within a budget of bytes: which rank, share or length a delta's file of that size allows.

Sizes are measured, not estimated: the tuner is attached, its values are filled with noise, and the
delta is written. Only positions that will be learnt cannot be known before; they are counted at
their entropy, `log2(e / share)` bits each (Golomb, 1966), and 5 % more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from graftwork._errors import ConfigError, UnknownNameError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import dumps
from graftwork.tasks import Task
from graftwork.training._adapt import provenance
from graftwork.training._adaptation import Adaptation
from graftwork.training._config import RunConfig
from graftwork.training._driver import Fitted
from graftwork.training._start import start
from graftwork.tuning import TUNERS, RandomMask, Tuner

REFERENCES = ("head", "full")
"""Methods that show what nothing and everything would give; they run outside the budget too."""

_METRICS = 200
"""Bytes kept free for the metrics that a finished delta holds."""

_MEASUREMENTS = 8
"""Most sizes that are measured for one method, beside the first."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One method under a budget.

    Attributes:
        method: name in `TUNERS`.
        tuner: what fits; None where nothing does, or the base does not take the method.
        setting: what the budget decided, for people, such as "rank 3".
        bytes: expected size of the file; None where it was not measured.
        reference: whether it runs although it does not fit.
        note: why it does not run, or what to know of it.
    """

    method: str
    tuner: Tuner | None
    setting: str = ""
    bytes: int | None = None
    reference: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Sizer:
    """Measures the file of a tuner on a task."""

    config: RunConfig
    base: Base
    task: Task

    def start(self, tuner: Tuner) -> Adaptation:
        config = self.config
        return start(
            self.base,
            self.task,
            tuner,
            targets=config.targets,
            exclude=config.exclude,
            seed=config.seed,
        )

    def bytes(self, tuner: Tuner) -> int:
        adaptation = self.start(tuner)
        drawn = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in (p for group in adaptation.groups for p in group.parameters):
                # noise, as zeros would be packed into nothing
                noise = torch.randn(value.shape, generator=drawn, dtype=torch.float32)
                value.copy_(noise.to(value))
        made = provenance(
            replace(self.config, tuner=tuner, continue_from=None),
            adaptation,
            self.task,
            Fitted(steps=self.config.train.steps),
        )
        return len(dumps(adaptation.delta(self.config.stored, made))) + _METRICS

    def entries(self, tuner: Tuner) -> tuple[int, int]:
        """Return entries and tensors among the targets that the loss reaches."""
        adaptation = self.start(tuner)
        left_out = set(adaptation.unreached)
        chosen = self.base.names.match(self.config.targets or ("*",), self.config.exclude)
        sizes = [self.base.names[name].numel for name in chosen if name not in left_out]
        return sum(sizes), len(sizes)


def fit_tuner(method: str, budget: int, config: RunConfig, base: Base, task: Task) -> Fit:
    """Return the tuner of a method with the most values whose delta's file is within the budget.

    Arguments:
        method: name in `TUNERS`; its other fields have their defaults.
        budget: bytes of the file, head and header included.
        config: targets, stored type and budget of steps; its tuner's `head_lr` is taken over.
        base: the frozen base.
        task: gives the ports, and which targets its loss reaches.

    Raises:
        UnknownNameError: there is no such method, or a target matches nothing.
    """
    if method not in TUNERS:
        raise UnknownNameError("method", method, TUNERS)
    rate = getattr(config.tuner, "head_lr", None)
    tuner = TUNERS[method]()
    if rate is not None:
        tuner = _with(tuner, head_lr=rate)
    sizer = _Sizer(config, base, task)
    try:
        return _FITS.get(method, _fixed)(sizer, method, tuner, budget)
    except (ConfigError, UnsupportedError) as error:
        return Fit(method=method, tuner=None, note=f"does not work here: {error}")


def _ranked(sizer: _Sizer, method: str, tuner: Tuner, budget: int) -> Fit:
    """The largest rank; alpha stays twice the rank, as in the defaults."""

    def at(rank: int) -> Tuner:
        known: dict[str, Any] = {"rank": rank, "alpha": 2.0 * rank}
        if method == "low_rank_sparse":
            known["share"] = (
                0.0005 * rank
            )  # as many sparse values beside the factors, as by default
        return _with(tuner, **known)

    return _linear(sizer, method, _Knob(at, lambda r: f"rank {r}", 1, 2, 256), budget)


def _long(sizer: _Sizer, method: str, tuner: Tuner, budget: int) -> Fit:
    """The most vectors, up to 20: more gains little and takes positions of the base."""
    knob = _Knob(lambda n: _with(tuner, length=n), lambda n: f"{n} vectors", 1, 2, 20)
    return _linear(sizer, method, knob, budget)


def _seeded(sizer: _Sizer, method: str, tuner: Tuner, budget: int) -> Fit:
    """The most values at positions that take no bytes."""
    entries, _ = sizer.entries(tuner)

    def at(kept: int) -> Tuner:
        return _with(tuner, share=_share(kept, entries))

    few = min(100, entries // 2)
    knob = _Knob(at, _values(entries), max(1, few), max(2, 2 * few), entries)
    return _linear(sizer, method, knob, budget)


def _learnt(sizer: _Sizer, method: str, tuner: Tuner, budget: int) -> Fit:
    """The most values with their positions."""
    entries, tensors = sizer.entries(tuner)
    few, more = min(100, entries // 2), min(1100, entries)
    low, high = (
        sizer.bytes(RandomMask(share=_share(k, entries), mask_seed=0)) for k in (few, more)
    )
    each = (high - low) / (more - few)

    def expected(kept: int) -> int:
        bits = math.log2(math.e * entries / kept)
        return math.ceil(low + each * (kept - few) + 1.05 * kept * bits / 8 + 8 * tensors)

    kept = _most(expected, budget, entries)
    if kept is None:
        return _too_small(method, expected(1))
    wanted = expected(kept)
    found = _with(tuner, share=_share(kept, entries))
    return Fit(method=method, tuner=found, setting=_values(entries)(kept), bytes=wanted)


def _narrow(sizer: _Sizer, method: str, tuner: Tuner, budget: int) -> Fit:
    """The widest bottlenecks among powers of two."""
    best, least = None, 0
    for power in range(9, -1, -1):
        candidate = _with(tuner, reduction=2**power)
        size = sizer.bytes(candidate)
        least = least or size
        if size > budget:
            break
        setting = f"width / {2**power}"
        best = Fit(method=method, tuner=candidate, setting=setting, bytes=size)
    return best or _too_small(method, least)


def _fixed(sizer: _Sizer, method: str, tuner: Tuner, budget: int) -> Fit:
    """A method without a size of its own: it fits or it does not."""
    size = sizer.bytes(tuner)
    if size <= budget:
        return Fit(method=method, tuner=tuner, bytes=size)
    if method in REFERENCES:
        note = "reference: outside the budget"
        return Fit(method=method, tuner=tuner, bytes=size, reference=True, note=note)
    return _too_small(method, size)


_Way = Callable[[_Sizer, str, Tuner, int], Fit]
_FITS: Mapping[str, _Way] = {
    "lora": _ranked,
    "dora": _ranked,
    "low_rank_sparse": _ranked,
    "random_mask": _seeded,
    "magnitude": _learnt,
    "gradient_mask": _learnt,
    "fisher_mask": _learnt,
    "diff_pruning": _learnt,
    "bottlenecks": _narrow,
    "prompt": _long,
    "prefix": _long,
}
"""How the methods with a size find it; the others have none."""


@dataclass(frozen=True, slots=True)
class _Knob:
    """What makes a tuner larger: its values, and the first two that are measured."""

    at: Callable[[int], Tuner]
    name: Callable[[int], str]
    first: int
    second: int
    most: int


def _linear(sizer: _Sizer, method: str, knob: _Knob, budget: int) -> Fit:
    """Go along the line through two measured sizes to where it meets the budget, and measure again.

    A few bytes that a mask leaves free are not worth another measurement.
    """
    fits, size = knob.first, sizer.bytes(knob.at(knob.first))
    if size > budget:
        return _too_small(method, size if knob.first == 1 else sizer.bytes(knob.at(1)))
    over, value = knob.most + 1, knob.second
    for _ in range(_MEASUREMENTS):
        found = sizer.bytes(knob.at(value))
        each = max(1e-9, (found - size) / (value - fits))
        if found > budget:
            over = value
        else:
            fits, size = value, found
        if over - fits <= 1 or budget - size < 0.01 * budget:
            break
        value = max(fits + 1, min(over - 1, fits + int((budget - size) / each)))
    note = f"more than {knob.most:,} is not tried" if fits == knob.most else ""
    return Fit(method=method, tuner=knob.at(fits), setting=knob.name(fits), bytes=size, note=note)


def _most(size: Callable[[int], int], budget: int, most: int) -> int | None:
    """Return the largest count whose size, which grows with it, is within the budget."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    return low or None


def _too_small(method: str, least: int) -> Fit:
    return Fit(
        method=method, tuner=None, bytes=least, note=f"does not fit: takes {least:,} bytes at least"
    )


def _share(kept: int, entries: int) -> float:
    """Return a share that keeps that many entries, whatever is rounded down."""
    return min(1.0, (kept + 0.5) / entries)


def _values(entries: int) -> Callable[[int], str]:
    return lambda kept: f"{kept:,} values ({100 * kept / entries:.2g} %)"


def _with(tuner: Tuner, **known: Any) -> Tuner:
    changed: Tuner = dataclasses.replace(tuner, **known)  # type: ignore[type-var]
    return changed
