"""The reference row executor: rows of one batch, each with its own list of (delta, weight).

Built for correctness: rows with the same list run together through `view`, one forward a group.
Faster paths are measured against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import DeltaError, UnsupportedError, UnusedTensorError
from graftwork.deltas._delta import BaseLike
from graftwork.deltas._plan import Weighted
from graftwork.deltas._ports import build_ports
from graftwork.deltas._view import require_consumed, view

Call = Callable[[nn.Module, nn.ModuleDict, Any], Tensor]
"""(module, ports, inputs of B rows) -> outputs `(B, ...)`."""


def run_rows(base: BaseLike, rows: Sequence[Weighted], batch: Batch, call: Call) -> list[Tensor]:
    """Run each row of `batch` with its own deltas; return one output a row, in row order.

    A row's list means, for each parameter, `W + sum_i w_i * (adapted_i(W) - W)`, and for a head
    `sum_i w_i * head_i(x)` over the deltas that have one. A bottleneck adds
    `sum_i w_i * (bottleneck_i(x) - x)`. Prompts and input embedders cannot be mixed: a row may have
    one of a name, of weight 1.

    Args:
        base: a base.
        rows: for each row its list of (delta, weight). An empty list means the base alone: the
            output is what `call` gives with no ports.
        batch: B rows, B = len(rows).
        call: runs the adapted module and the ports on the rows of one group.

    Returns:
        One tensor a row, without the row dimension; heads of different sizes give different shapes.

    Raises:
        DeltaError: another number of rows than lists, heads that do not agree in shape, ports that
            cannot be mixed, or a `call` that returns another number of rows.
        UnusedTensorError: a touched tensor or a port was not consumed by its group's forward.
        FingerprintError: a delta was made for another base.
        UnsupportedError: rows are packed (`row_of`).
    """
    if len(rows) != len(batch):
        raise DeltaError(f"{len(rows)} lists of deltas for a batch of {len(batch)} rows")
    if batch.row_of is not None:
        raise UnsupportedError("packed rows (row_of) cannot be split by task here; pad them")
    outputs: list[Tensor | None] = [None] * len(rows)
    for members in _groups(rows).values():
        group = batch.select(torch.tensor(members, device=batch.rows.device))
        result = _run_group(base, rows[members[0]], group.inputs, call)
        if result.shape[:1] != (len(members),):
            raise DeltaError(
                f"call returned shape {tuple(result.shape)} for a group of {len(members)} rows"
            )
        for member, output in zip(members, result, strict=True):
            outputs[member] = output
    return [output for output in outputs if output is not None]


def _groups(rows: Sequence[Weighted]) -> dict[tuple[tuple[int, float], ...], list[int]]:
    """Return row indices by identical list; deltas are told apart as objects, never by name."""
    groups: dict[tuple[tuple[int, float], ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(tuple((id(d), float(w)) for d, w in row), []).append(index)
    return groups


def _run_group(base: BaseLike, deltas: Weighted, inputs: Any, call: Call) -> Tensor:
    module = view(base, deltas, unused="allow")
    ports = combine_ports(deltas)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    used: set[str] = set()
    for name, port in ports.to(device).items():
        port.register_forward_hook(lambda *_, name=name: used.add(name))
    result = call(module, ports, inputs)
    require_consumed(module)
    unused = sorted(set(ports) - used)
    if unused:
        raise UnusedTensorError(
            f"port {unused[0]!r} of the delta was not consumed: the call does not run it"
        )
    return result


def combine_ports(deltas: Weighted) -> nn.ModuleDict:
    """Return the ports of a weighted list: one module a name.

    Raises:
        DeltaError: ports of one name that cannot be mixed.
    """
    found: dict[str, list[tuple[nn.Module, str, float]]] = {}
    for delta, weight in deltas:
        for name, module in build_ports(delta).items():
            entry = (module, delta.ports[name].kind, float(weight))
            found.setdefault(name, []).append(entry)
    ports = nn.ModuleDict()
    for name, entries in found.items():
        ports._modules[name] = _combine(name, entries)
    return ports.eval()


def _combine(name: str, entries: list[tuple[nn.Module, str, float]]) -> nn.Module:
    if len(entries) == 1 and entries[0][2] == 1.0:
        return entries[0][0]
    kinds = {kind for _, kind, _ in entries}
    mixture = _MIXTURES.get(next(iter(kinds))) if len(kinds) == 1 else None
    if mixture is None:
        raise DeltaError(
            f"ports {name!r} of kind {' and '.join(sorted(kinds))} cannot be mixed or weighted; "
            "give the row one delta with such a port, of weight 1"
        )
    return mixture(name, [m for m, _, _ in entries], [w for _, _, w in entries])


class _HeadSum(nn.Module):
    """`sum_i w_i * head_i(x)`."""

    def __init__(self, name: str, heads: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.name, self.heads, self.weights = name, nn.ModuleList(heads), tuple(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sum of the heads' outputs."""
        outputs = [head(x) for head in self.heads]
        shapes = {tuple(o.shape[1:]) for o in outputs}
        if len(shapes) > 1:
            raise DeltaError(
                f"heads {self.name!r} of one row have outputs of different shapes, "
                f"{' and '.join(map(str, sorted(shapes)))}, and cannot be added"
            )
        out: Tensor = self.weights[0] * outputs[0]
        for weight, output in zip(self.weights[1:], outputs[1:], strict=True):
            out = out + weight * output
        return out


class _BottleneckSum(nn.Module):
    """`x + sum_i w_i * (bottleneck_i(x) - x)`."""

    def __init__(self, _name: str, parts: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts), tuple(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream with the weighted contributions of the bottlenecks."""
        out = x
        for weight, part in zip(self.weights, self.parts, strict=True):
            out = out + weight * (part(x) - x)
        return out


_MIXTURES: Mapping[str, Callable[[str, Sequence[nn.Module], Sequence[float]], nn.Module]] = {
    "head": _HeadSum,
    "bottleneck": _BottleneckSum,
}
