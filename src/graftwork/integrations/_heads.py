"""Modules of a base that are trained in full, because they come with random values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from graftwork._errors import UnknownNameError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import float_of, is_int8, replace_parameter


def trainable_copy(model: nn.Module, path: str) -> nn.Module:
    """Return a copy of the module at `path` that can be trained.

    Of a base in 16 bits it is in 32, for steps that are small beside a weight would round away;
    what it reads and gives stays in the base's type. Weights in 8 bits become floating ones.

    Raises:
        UnknownNameError: no such module.
        UnsupportedError: it shares a tensor with the rest of the model.
    """
    modules = dict(model.named_modules())
    if path not in modules or not path:
        raise UnknownNameError("module", path, [name for name in modules if name])
    own = {id(p) for p in modules[path].parameters()}
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) in own and not name.startswith(f"{path}."):
            raise UnsupportedError(
                f"head {path!r} shares a tensor with {name!r}, so it cannot be trained by itself; "
                "leave it out of heads= and make the tensor a target"
            )
    head: nn.Module = copy.deepcopy(modules[path])
    for name, p in list(head.named_parameters()):
        if is_int8(p):
            replace_parameter(head, name, nn.Parameter(float_of(p)))
    head.requires_grad_()
    narrow = next((p.dtype for p in head.parameters() if p.dtype in _NARROW), None)
    if narrow is not None:
        head.float()
        head.register_forward_pre_hook(lambda _, inputs: _cast(inputs, narrow, torch.float32))
        head.register_forward_hook(lambda _m, _i, outputs: _cast(outputs, torch.float32, narrow))
    return head


_NARROW = (torch.bfloat16, torch.float16)


def _cast(tree: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Return `tree` with tensors of type `old` in type `new`."""

    def one(leaf: Any) -> Any:
        return leaf.to(new) if isinstance(leaf, Tensor) and leaf.dtype == old else leaf

    return tree_map(one, tree)


def parameters_inside(base: Base, heads: Sequence[str]) -> set[str]:
    """Return the names of the parameters that lie in the modules `heads`."""
    names = [name for name, _ in base.model.named_parameters(remove_duplicate=False)]
    return {n for n in names if any(n.startswith(f"{head}.") for head in heads)}
