"""Running the groups of a batch together over one base."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork._batch import Batch
from graftwork._errors import (
    ConfigError,
    DeltaError,
)
from graftwork.deltas import (
    BaseLike,
    combine_ports,
    run_rows,
    shared_copy,
)
from graftwork.serving._apart import views_of
from graftwork.serving._cache import Recent
from graftwork.serving._groups import Group, owners
from graftwork.serving._layout import LayoutError
from graftwork.serving._plan import filled, form_of, spans_of
from graftwork.serving._prepared import Prepared
from graftwork.serving._probe import Call, Called, inputs_of, probe
from graftwork.serving._report import Report, check_consumed, fill, narrowed
from graftwork.serving._rowports import RowPort, follow
from graftwork.serving._state import Run
from graftwork.serving._terms import Matrix
from graftwork.serving._together import terms_of
from graftwork.serving._twin import BypassedError, Twin
from graftwork.serving._way import Way, called_ports, make_way, mounted_ports, runs_apart


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """How much a `Mixer` keeps beside its deltas.

    Raises:
        ConfigError: a budget is negative.
    """

    held_bytes: int = 4 << 30
    """For deltas that a source gives (4 bytes a sparse value of 16 bits); those least recently
    planned with make room. Deltas of `add` are held beside it."""
    written_bytes: int = 1 << 30
    """For the terms of deltas in use, written out for products (8 bytes a sparse value); what was
    used last stays. At 0.5 % of a base of 85 million weights a delta takes 3.4 MB."""
    stacked_bytes: int = 1 << 30
    """For the stacks of sets of deltas that run together (8 bytes a sparse value)."""
    compile: str | None = None
    """Backend of `torch.compile` by which the base runs, such as "inductor"; None: as it is. Rows
    are then filled up to a power of two, so that batches of other sizes seldom compile anew; other
    deltas never do. One run at a time; what runs once for each group is not compiled."""

    def __post_init__(self) -> None:
        for name in ("held_bytes", "written_bytes", "stacked_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: 0 or more, not {getattr(self, name)}")


class Executor:
    """Runs groups over a base, and keeps what batches have in common.

    Args:
        base: a base.
        config: what is kept.
        held: all deltas that batches may have.
    """

    def __init__(
        self, base: BaseLike, config: MixerConfig, held: Callable[[], Sequence[Prepared]]
    ) -> None:
        self.base, self.config, self._held = base, config, held
        self._plain = shared_copy(base.model).eval()
        self._lock, self._alone = threading.Lock(), threading.Lock()
        self._twins: dict[int, list[Twin]] = {}
        self._ways: dict[Any, list[Way]] = {}
        self._tried: dict[Any, Mapping[str, Called]] = {}
        self._written: Recent[Matrix] = Recent(config.written_bytes, _matrix_bytes)
        self._stacks: Recent[Mapping[str, Any]] = Recent(config.stacked_bytes, _terms_bytes)
        self._ports: Recent[nn.ModuleDict] = Recent(1 << 28, _state_bytes)

    def forget(self, key: str) -> None:
        """Let go what is kept for a delta."""
        for cache in (self._written, self._stacks, self._ports):
            cache.drop(lambda held: _names(held, key))

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of what is kept."""
        return {"written": self._written.bytes, "stacked": self._stacks.bytes}

    def run(
        self,
        groups: tuple[Group, ...],
        sizes: Sequence[int],
        batch: Batch,
        call: Call,
        report: Report,
    ) -> list[Tensor]:
        """Run groups that may share a forward."""
        if any(runs_apart(group) for group in groups):
            report.whole = "prompts and prefixes change the length of a row"
            return self._each(groups, sizes, batch, call)
        way = self._way(groups, batch, call)
        if not way.whole:
            try:
                return self._mixed(way, groups, sizes, batch, call, report)
            except (BypassedError, LayoutError) as reason:
                way.whole = str(reason)
        report.whole = way.whole
        return self._each(groups, sizes, batch, call)

    def _each(
        self, groups: Sequence[Group], sizes: Sequence[int], batch: Batch, call: Call
    ) -> list[Tensor]:
        """Run one forward a group, by the definition."""
        lists = []
        for group, size in zip(groups, sizes, strict=True):
            own = [(held.delta(), weight) for held, weight in group.members]
            lists += [own] * size
        return run_rows(self.base, lists, batch, call)

    def _way(self, groups: Sequence[Group], batch: Batch, call: Call) -> Way:
        """Return how batches of this kind run, tried where it is new."""
        touched = owners(self.base.names, groups)
        places = dict.fromkeys(p for group in groups for p in mounted_ports(group))
        kind = (getattr(call, "__code__", call), form_of(batch))
        compiled = self.config.compile is not None
        with self._lock:
            for way in self._ways.get(kind, ()):
                if way.serves(touched, places, roomy=compiled):
                    return way
            tried = self._tried.get(kind)
        if tried is None:
            ports = self._ports_of(groups[0])
            tried = probe(shared_copy(self.base.model).eval(), ports, batch, call)
        if compiled:
            # for all deltas at once, so that other ones do not compile anew
            every = [Group((), tuple((delta, 1.0) for delta in self._held()))]
            touched = owners(self.base.names, [*groups, *every])
        way = make_way(self.base, touched, places, tried)
        with self._lock:
            self._tried[kind] = tried
            self._ways.setdefault(kind, []).append(way)
        return way

    def _ports_of(self, group: Group) -> nn.ModuleDict:
        """Return the ports of a group that calls run."""

        def make() -> nn.ModuleDict:
            own = [(held.frame, weight) for held, weight in group.members]
            return combine_ports(own, mounted=False).to(self._device)

        return self._ports.get((group.key, "call"), make)

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.base.model.parameters()), torch.device("cpu"))

    def _mixed(
        self,
        way: Way,
        groups: tuple[Group, ...],
        sizes: Sequence[int],
        batch: Batch,
        call: Call,
        report: Report,
    ) -> list[Tensor]:
        wanted = len(batch)
        if self.config.compile is not None:
            batch, sizes = filled(batch, sizes)
        key = (tuple(group.key for group in groups), id(way))
        terms = self._stacks.get(key, lambda: self._terms(way, groups))
        run = Run(groups, spans_of(sizes, batch), terms)
        alone = self._alone if self.config.compile else nullcontext()
        with alone:
            outputs = self._once(way, run, batch, call)
        check_consumed(way, groups, run, self.base.names)
        fill(report, way, run)
        return outputs[:wanted]

    def _once(self, way: Way, run: Run, batch: Batch, call: Call) -> list[Tensor]:
        groups = run.groups
        twin = self._borrow(way)
        hooks = self._follow(way, groups, run, twin)
        try:
            twin.enter(run)
            with torch.no_grad():
                return self._calls(groups, batch, call, run, twin)
        finally:
            for hook in hooks:
                hook.remove()
            twin.leave()
            with self._lock:
                self._twins.setdefault(id(way), []).append(twin)

    def _borrow(self, way: Way) -> Twin:
        with self._lock:
            free = self._twins.setdefault(id(way), [])
            if free:
                return free.pop()
        return Twin(self.base.model, self._plain, way.sites, way.touched, self.config.compile)

    def _terms(self, way: Way, groups: Sequence[Group]) -> Mapping[str, Any]:
        """Return what the groups do at each site."""
        found: dict[str, Any] = {}
        for site in way.sites:
            if site.kind == "groups":
                inside = way.inside[site.path]
                found[site.path] = views_of(site.path, self.base, self._plain, groups, *inside)
                continue
            module = self._plain.get_submodule(site.path)

            def single(group: Group, parameter: str, make: Callable[[], Matrix]) -> Matrix:
                return self._written.get((group.key, parameter), make)

            found[site.path] = terms_of(site, module, self.base.names, groups, single)
        return found

    def _follow(
        self, way: Way, groups: Sequence[Group], run: Run, twin: Twin
    ) -> list[RemovableHandle]:
        """Put bottlenecks behind their modules."""
        hooks = []
        for name, (path, layout) in way.places.items():
            modules = [self._mounted_port(group, name) for group in groups]
            after = follow(name, modules, layout, run)
            hooks.append(twin.module.get_submodule(path).register_forward_hook(after))
        return hooks

    def _mounted_port(self, group: Group, name: str) -> nn.Module | None:
        if name not in mounted_ports(group):
            return None

        def make() -> nn.ModuleDict:
            own = [(held.frame, weight) for held, weight in group.members]
            return combine_ports(own, mounted=True).to(self._device)

        return self._ports.get((group.key, "mounted"), make)[name]

    def _calls(
        self, groups: Sequence[Group], batch: Batch, call: Call, run: Run, twin: Twin
    ) -> list[Tensor]:
        """Call once for all groups with the same ports; the base runs once in all."""
        kinds = [frozenset(called_ports(group).items()) for group in groups]
        different = list(dict.fromkeys(kinds))
        bounds = run.spans.rows.bounds
        outputs: dict[int, Tensor] = {}
        for kind in different:
            ports = nn.ModuleDict()
            for name, _ in sorted(kind):
                own = [
                    self._ports_of(group)[name] if mine == kind else None
                    for group, mine in zip(groups, kinds, strict=True)
                ]
                ports._modules[name] = RowPort(name, own, run)
            twin.again(record=len(different) > 1)
            result = call(twin.module, ports, inputs_of(batch))
            if result.shape[:1] != (len(batch),):
                raise DeltaError(f"call returned shape {tuple(result.shape)} for {len(batch)} rows")
            for g, mine in enumerate(kinds):
                if mine == kind:
                    part = narrowed(result[bounds[g] : bounds[g + 1]], g, ports)
                    outputs.update(enumerate(part, start=bounds[g]))
        return [outputs[row] for row in range(len(batch))]


def _names(held: Hashable, key: str) -> bool:
    """Return whether a cache's key speaks of a delta."""
    return held == key or (isinstance(held, tuple) and any(_names(part, key) for part in held))


def _matrix_bytes(matrix: Matrix) -> int:
    parts = [*(matrix.sparse or ()), matrix.right, matrix.left, matrix.out_scale, matrix.in_scale]
    return sum(map(_size, parts))


def _terms_bytes(terms: Mapping[str, Any]) -> int:
    return sum(term.bytes for term in terms.values())


def _state_bytes(ports: nn.ModuleDict) -> int:
    return sum(map(_size, ports.state_dict().values()))


def _size(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
