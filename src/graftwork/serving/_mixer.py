"""Many deltas in one batch: `Mixer.plan` says which rows have which, `Mixer.run` runs them."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from graftwork._batch import Batch
from graftwork._errors import (
    DeltaError,
    UnknownNameError,
)
from graftwork.deltas import (
    BaseLike,
    Delta,
)
from graftwork.serving._executor import Executor, MixerConfig
from graftwork.serving._groups import Group, GroupKey
from graftwork.serving._plan import Plan, stretches
from graftwork.serving._prepared import Prepared, Supports, prepare
from graftwork.serving._probe import Call
from graftwork.serving._report import Report
from graftwork.serving._residency import ReadAhead, Residency
from graftwork.serving._way import lengthened

RowLists = Sequence[Sequence[tuple[str, float]]]
"""For each row its list of (key of a delta, weight)."""


class Mixer:
    """Holds deltas of one base and runs batches in which each row has its own.

    A row's list of (delta, weight) means what it means for `graftwork.deltas.run_rows`, which is
    the definition that this must meet: `W + sum_i w_i * (adapted_i(W) - W)` for each parameter, and
    `sum_i w_i * head_i(x)` for heads. Threads may plan and run at the same time.

    Args:
        base: a base; it is not changed.
        config: what is kept.
        source: content hash -> delta, such as the files of a folder. A key that was not added is
            asked of it when a plan needs it, and let go when the budget needs room and no plan
            holds it.

    Example:
        >>> import torch
        >>> from graftwork import bases, deltas
        >>> base = bases.load(torch.nn.Linear(2, 1))
        >>> up, down = (
        ...     deltas.Delta(
        ...         {"bias": deltas.Update((1,), dense=torch.tensor([by]))},
        ...         fingerprint=deltas.fingerprint_of(base, ["bias"]),
        ...     )
        ...     for by in (1.0, -1.0)
        ... )
        >>> mixer = Mixer(base)
        >>> first, second = mixer.add(up), mixer.add(down)
        >>> plan = mixer.plan([[(first, 1.0)], [], [(second, 1.0)]])
        >>> batch = Batch({"x": torch.zeros(3, 2)}, None, torch.arange(3))
        >>> outputs = mixer.run(plan, batch, lambda module, ports, inputs: module(inputs["x"]))
        >>> [round((output - base.model.bias).item(), 3) for output in outputs]
        [1.0, 0.0, -1.0]
    """

    def __init__(
        self,
        base: BaseLike,
        config: MixerConfig | None = None,
        source: Callable[[str], Delta] | None = None,
    ) -> None:
        self.base = base
        self._source = source
        self.config = config or MixerConfig()
        self._deltas: dict[str, Prepared] = {}
        self._supports = Supports()
        self._lock = threading.Lock()
        self._resident: Residency[Prepared] = Residency(
            self.config.held_bytes, self._prepare, lambda held: held.bytes
        )
        self._executor = Executor(base, self.config, lambda: tuple(self._deltas.values()))

    def add(self, delta: Delta | Prepared) -> str:
        """Hold a delta, and return the key that rows name it by: its content hash.

        Raises:
            FingerprintError: it was made for another base.
        """
        ready = delta if isinstance(delta, Prepared) else prepare(self.base, delta, self._supports)
        with self._lock:
            return self._deltas.setdefault(ready.key, ready).key

    def _prepare(self, key: str) -> Prepared:
        if self._source is None:
            raise UnknownNameError("delta", key, self._deltas)
        return prepare(self.base, self._source(key), self._supports, key)

    def remove(self, key: str) -> None:
        """Let a delta go; plans that were made with it still run.

        Raises:
            UnknownNameError: it is not held.
            InputError: it came from the source, and a plan holds it.
        """
        with self._lock:
            added = self._deltas.pop(key, None)
        if added is None:
            if key not in self._resident:
                raise UnknownNameError("delta", key, self.keys)
            self._resident.remove(key)
        self._executor.forget(key)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the deltas held."""
        return (*self._deltas, *self._resident.keys())

    def read_ahead(self, keys: Iterable[str]) -> Future[ReadAhead]:
        """Ask the source for deltas in the background, for plans to come; see `Residency`."""
        return self._resident.read_ahead(key for key in keys if key not in self._deltas)

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of the deltas held, and of what is kept ready for the last plans."""
        with self._lock:
            held = sum(delta.bytes for delta in self._deltas.values())
        held += self._resident.statistics().bytes
        return {"deltas": held, **self._executor.bytes}

    def plan(self, rows: RowLists) -> Plan:
        """Return which rows have which deltas, ready to run any number of times.

        Args:
            rows: for each row a list of (key, weight). An empty list is the base alone.

        Raises:
            UnknownNameError: a key is not held.
            DeltaError: a weight is not finite, or there are no rows.
        """
        if not rows:
            raise DeltaError("a plan needs at least one row")
        members: dict[Any, list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault(tuple((key, float(weight)) for key, weight in row), []).append(index)
        pinned: list[str] = []
        try:
            groups = {key: self._group(key, pinned) for key in members}
            # groups that share a forward stand together
            keys = sorted(members, key=lambda key: (lengthened(groups[key]), key))
            order = [index for key in keys for index in members[key]]
            plan = Plan(
                tuple(groups[key] for key in keys),
                torch.tensor(order),
                tuple(len(members[key]) for key in keys),
            )
        except BaseException:
            self._unpin(pinned)
            raise
        # what the source gave stays held for as long as the plan is
        weakref.finalize(plan, self._unpin, pinned).atexit = False
        return plan

    def _unpin(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._resident.unpin(key)

    def _group(self, key: GroupKey, pinned: list[str]) -> Group:
        members = []
        for name, weight in key:
            if not math.isfinite(weight):
                raise DeltaError(f"the weight of a delta must be finite, not {weight}")
            with self._lock:
                delta = self._deltas.get(name)
            if delta is None:
                delta = self._resident.pin(name)
                pinned.append(name)
            members.append((delta, weight))
        return Group(key, tuple(members))

    def run(
        self, plan: Plan, batch: Batch, call: Call, report: Report | None = None
    ) -> list[Tensor]:
        """Run each row with its own deltas; return one output a row, in the batch's order.

        The first batch of a kind costs two forwards of two and three rows, by which is learnt where
        rows stand in the tensors of each module.

        Args:
            plan: of as many rows.
            batch: B rows. Packed ones come to `call` with `row_of` among the inputs.
            call: (module, ports, inputs of B rows) -> outputs `(B, ...)`. It may run `generate`. It
                is called once for all rows whose ports are alike; the base's outputs are kept
                between such calls, and where it makes heads' outputs, those of other rows are NaN.
            report: is filled with how it was done.

        Returns:
            One tensor a row, without the row dimension; heads of different sizes give different
            shapes.

        Raises:
            DeltaError: another number of rows than planned, ports that cannot be mixed, or a `call`
                that returns another number of rows.
            UnusedTensorError: a touched tensor or a port was not consumed by the forward.
            UnsupportedError: what cannot be done, with the module's name.
        """
        if len(batch) != len(plan.order):
            raise DeltaError(f"a plan of {len(plan.order)} rows for a batch of {len(batch)}")
        report = report or Report()
        ready = batch.select(plan.order.to(batch.rows.device))
        outputs: list[Tensor | None] = [None] * len(batch)
        start = 0
        for groups, sizes in stretches(plan):
            places = range(start, start + sum(sizes))
            part = ready
            if len(places) < len(batch):
                part = ready.select(torch.arange(places.start, places.stop))
            found = self._executor.run(groups, sizes, part, call, report)
            for place, output in zip(places, found, strict=True):
                outputs[int(plan.order[place])] = output
            start = places.stop
        return [output for output in outputs if output is not None]
