"""A weight that is only computed when something calculates with it.

Model code often asks a layer's weight for its type or device and nothing more. Where the layer
itself runs as a branch, its adapted weight exists nowhere; a `LazyWeight` answers such questions
from the frozen weight, and becomes the adapted weight the moment an operation wants its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from graftwork.deltas import is_int8

_ASKED = frozenset(
    (
        "__len__",
        "_has_symbolic_sizes_strides",
        "_version",
        "device",
        "dim",
        "dtype",
        "element_size",
        "get_device",
        "is_complex",
        "is_contiguous",
        "is_cpu",
        "is_cuda",
        "is_floating_point",
        "is_leaf",
        "is_meta",
        "is_nested",
        "is_quantized",
        "is_sparse",
        "itemsize",
        "layout",
        "names",
        "nbytes",
        "ndim",
        "ndimension",
        "nelement",
        "numel",
        "shape",
        "size",
        "stride",
        "type",
    )
)
"""Questions about a tensor that its values do not matter for."""


class LazyWeight(Tensor):
    """The frozen weight of a branch, standing for the adapted one. Made by `lazy_weight`."""

    _graftwork_compute: Callable[[], Tensor]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a question from the frozen weight, or compute the adapted one for `func`."""
        del types
        if _name_of(func) in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(_computed, (args, kwargs or {}))
        return func(*args, **kwargs)


def lazy_weight(weight: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Return a stand-in for `compute()`, which has the shape, type and device of `weight`.

    Example:
        >>> frozen = torch.zeros(2, 2)
        >>> stand_in = lazy_weight(frozen, lambda: frozen + 1.0)
        >>> stand_in.dtype, float((stand_in @ torch.ones(2)).sum())
        (torch.float32, 4.0)
    """
    if is_int8(weight):
        # one number for all: only shape, type and device are asked of it
        weight = torch.zeros((), dtype=weight.dtype, device=weight.device).expand(weight.shape)
    stand_in = weight.detach().as_subclass(LazyWeight)
    stand_in._graftwork_compute = compute
    return stand_in


def _computed(value: Any) -> Any:
    return value._graftwork_compute() if isinstance(value, LazyWeight) else value


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", "")
    # getters of attributes are all called "__get__"; what they belong to has the name
    return str(getattr(func.__self__, "__name__", "")) if name == "__get__" else str(name)
