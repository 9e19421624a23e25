"""Running the groups of a batch together over one base."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork._batch import Batch
from graftwork._errors import (
    ConfigError,
    DeltaError,
    UnsupportedError,
)
from graftwork.deltas import (
    BaseLike,
    combine_ports,
    mark_rows,
    mount,
    refuse_applied,
    run_rows,
    shared_copy,
)
from graftwork.serving._apart import views_of
from graftwork.serving._cache import Recent
from graftwork.serving._groups import Group, owners
from graftwork.serving._kinds import Kind, key_of
from graftwork.serving._layout import LayoutError
from graftwork.serving._plan import filled, form_of, spans_of
from graftwork.serving._prepared import Prepared
from graftwork.serving._probe import Call, inputs_of, probe
from graftwork.serving._report import Report, check_consumed, fill
from graftwork.serving._rowports import RowPort, follow
from graftwork.serving._state import Run
from graftwork.serving._terms import Matrix
from graftwork.serving._together import terms_of
from graftwork.serving._twin import BypassedError, Twin
from graftwork.serving._way import Way, called_ports, lengthened, make_way, mounted_ports

KINDS = 64
"""Kinds of batches of which it is kept how they run."""


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
        self._kinds: OrderedDict[Hashable, Kind] = OrderedDict()
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
        refuse_applied(self.base.model)
        way = self._way(groups, batch, call)
        for again in (False, True):
            if way.whole:
                break
            try:
                return self._mixed(way, groups, sizes, batch, call, report)
            except BypassedError as reason:
                way.whole = str(reason)
            except LayoutError as reason:
                # other values may call modules in another way, such as masks where rows are padded
                if again:
                    way.whole = str(reason)
                else:
                    way = self._way(groups, batch, call, fresh=True)
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

    def _way(
        self, groups: Sequence[Group], batch: Batch, call: Call, *, fresh: bool = False
    ) -> Way:
        """Return how batches of this kind run, tried where it is new."""
        touched = owners(self.base.names, groups)
        places = dict.fromkeys(p for group in groups for p in mounted_ports(group))
        kind = self._kind(groups, batch, call, fresh=fresh)
        compiled = self.config.compile is not None
        with self._lock:
            for way in kind.ways:
                if way.serves(touched, places, roomy=compiled):
                    return way
        if compiled:
            # for all deltas at once, so that other ones do not compile anew
            every = [Group((), tuple((delta, 1.0) for delta in self._held()))]
            touched = owners(self.base.names, [*groups, *every])
        way = make_way(self.base, touched, places, kind)
        with self._lock:
            kind.ways.append(way)
        return way

    def _kind(self, groups: Sequence[Group], batch: Batch, call: Call, *, fresh: bool) -> Kind:
        """Return what is known of batches of this kind, with the ports of all groups."""
        longer = lengthened(groups[0])
        key = (key_of(call), form_of(batch), longer)
        with self._lock:
            kind = Kind() if fresh else self._kinds.get(key, Kind())
        for group in groups:
            names = frozenset(called_ports(group))
            if names not in kind.ports:
                module = shared_copy(self.base.model).eval()
                mark_rows(module)
                for name, own, _ in longer:
                    mount(self.base, module, name, own, self._inner_port(group, name))
                with unchanged_buffers(module):
                    found = probe(module, self._ports_of(group), batch, call)
                with self._lock:
                    kind.learn(names, found)
        with self._lock:
            self._kinds[key] = kind
            self._kinds.move_to_end(key)
            if len(self._kinds) > KINDS:
                self._kinds.popitem(last=False)
            # ways that were forgotten, or found wrong and tried anew, need no copies any more
            live = {way.number for known in self._kinds.values() for way in known.ways}
            for number in self._twins.keys() - live:
                del self._twins[number]
        return kind

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
        key = (tuple(group.key for group in groups), way.number)
        terms = self._stacks.get(key, lambda: self._terms(way, groups))
        run = Run(groups, spans_of(sizes, batch, self._device), terms, way.ports_called)
        alone = self._alone if self.config.compile else nullcontext()
        with alone:
            outputs = self._once(way, run, batch, call)
        check_consumed(way, groups, run, self.base.names)
        fill(report, way, run)
        return outputs[:wanted]

    def _once(self, way: Way, run: Run, batch: Batch, call: Call) -> list[Tensor]:
        groups = run.groups
        twin = self._borrow(way, groups)
        prompts = {
            name: [self._inner_port(group, name) for group in groups]
            for name, _, _ in lengthened(groups[0])
        }
        hooks = self._follow(way, groups, run, twin)
        try:
            twin.enter(run, prompts)
            with torch.no_grad(), unchanged_buffers(twin.module):
                return self._calls(groups, batch, call, run, twin)
        finally:
            for hook in hooks:
                hook.remove()
            twin.leave()
            with self._lock:
                self._twins.setdefault(way.number, []).append(twin)

    def _borrow(self, way: Way, groups: Sequence[Group]) -> Twin:
        with self._lock:
            free = self._twins.setdefault(way.number, [])
            if free:
                return free.pop()
        twin = Twin(self.base.model, self._plain, way.sites, way.touched, self.config.compile)
        twin.mount(self.base, [(name, kind) for name, kind, _ in lengthened(groups[0])])
        return twin

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
            modules = [
                self._inner_port(group, name) if name in mounted_ports(group) else None
                for group in groups
            ]
            after = follow(name, modules, layout, run)
            hooks.append(twin.module.get_submodule(path).register_forward_hook(after))
        return hooks

    def _inner_port(self, group: Group, name: str) -> nn.Module:
        """Return the port of a group that the base itself runs."""

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
            called = run.called.get(frozenset(name for name, _ in kind), {})
            for name, _ in sorted(kind):
                own = [
                    self._ports_of(group)[name] if mine == kind else None
                    for group, mine in zip(groups, kinds, strict=True)
                ]
                ports._modules[name] = RowPort(name, own, called.get(name), run)
            twin.again(record=len(different) > 1)
            result = call(twin.module, ports, inputs_of(batch))
            if result.shape[:1] != (len(batch),):
                raise DeltaError(f"call returned shape {tuple(result.shape)} for {len(batch)} rows")
            for g, mine in enumerate(kinds):
                if mine == kind:
                    part = result[bounds[g] : bounds[g + 1]]
                    outputs.update(enumerate(part, start=bounds[g]))
        return [outputs[row] for row in range(len(batch))]


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Raise where what runs inside changes a buffer of the base in place (law 1).

    Raises:
        UnsupportedError: names the buffer.
    """
    before = [(n, b, b._version) for n, b in module.named_buffers() if not b.is_inference()]
    yield
    for name, buffer, version in before:
        if buffer._version != version:
            raise UnsupportedError(
                f"the forward changed the buffer {name!r} of the base in place; load the base "
                "again and give it buffers that stay"
            )


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
