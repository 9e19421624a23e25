"""The ports of several weighted deltas as one module a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from graftwork._errors import DeltaError
from graftwork.deltas._mounts import place_of
from graftwork.deltas._plan import Weighted
from graftwork.deltas._ports import build_ports


def combine_ports(deltas: Weighted, *, mounted: bool | None = None) -> nn.ModuleDict:
    """Return the ports of a weighted list: one module a name.

    Args:
        deltas: deltas with their weights.
        mounted: only those that `view` runs inside the base, or only those that the call runs;
            None: all.

    Raises:
        DeltaError: ports of one name that cannot be mixed.
    """
    found: dict[str, list[tuple[nn.Module, str, float]]] = {}
    for delta, weight in deltas:
        for name, module in build_ports(delta).items():
            if mounted is not None and mounted != (place_of(name, delta.ports[name].kind) != ""):
                continue
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
