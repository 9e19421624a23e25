"""The reference row executor: rows of one batch, each with its own list of (delta, weight).

Built for correctness: rows with the same list run together through `view`, one forward a group.
Faster paths are measured against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import DeltaError, UnusedTensorError
from graftwork.deltas._delta import BaseLike
from graftwork.deltas._plan import Weighted
from graftwork.deltas._port_mix import combine_ports
from graftwork.deltas._view import require_consumed, view

Call = Callable[[nn.Module, nn.ModuleDict, Any], Tensor]
"""(module, ports, inputs of B rows) -> outputs `(B, ...)`."""

_DIFFER = "_graftwork_rows_differ"


def mark_rows(module: nn.Module) -> None:
    """Note on a copy of a base that each row of its batches may have weights of its own."""
    vars(module)[_DIFFER] = True


def rows_differ(module: nn.Module) -> bool:
    """Return whether equal rows of a module may give different outputs.

    A call that runs equal rows once must not do so then.

    Example:
        >>> rows_differ(nn.Linear(1, 1))
        False
    """
    return _DIFFER in vars(module)


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
        batch: B rows, B = len(rows). Packed ones come to `call` with `row_of` among the inputs.
        call: runs the adapted module and the ports on the rows of one group.

    Returns:
        One tensor a row, without the row dimension; heads of different sizes give different shapes.

    Raises:
        DeltaError: another number of rows than lists, heads that do not agree in shape, ports that
            cannot be mixed, or a `call` that returns another number of rows.
        UnusedTensorError: a touched tensor or a port was not consumed by its group's forward.
        FingerprintError: a delta was made for another base.
    """
    if len(rows) != len(batch):
        raise DeltaError(f"{len(rows)} lists of deltas for a batch of {len(batch)} rows")
    outputs: list[Tensor | None] = [None] * len(rows)
    for members in _groups(rows).values():
        group = batch.select(torch.tensor(members, device=batch.rows.device))
        inputs = dict(group.inputs)
        if group.row_of is not None:
            inputs["row_of"] = group.row_of
        result = _run_group(base, rows[members[0]], inputs, call)
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
    ports = combine_ports(deltas, mounted=False)
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
