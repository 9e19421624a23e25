"""The module tree: a copy that shares storage, and putting a tensor in at a name and its ties."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm

from graftwork._errors import UnknownNameError, UnsupportedError
from graftwork.deltas._int8 import why_unsupported


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the module tree whose parameters and buffers are the original's own storage.

    Every parameter becomes a new `nn.Parameter` (`requires_grad=False`) on the same storage, ties
    stay tied, buffers are the same tensors. The copy's tree can be changed at will (hooks, replaced
    parameters, `.to`, `.half`) without touching `model`. Two rules keep the shared values safe:
    modules with running statistics (batch normalisation and kin) stay in eval mode whatever
    `train()` says, and `load_state_dict` on the copy is refused.

    Raises:
        UnsupportedError: the module cannot be copied (TorchScript, lazy parameters, tensor
            subclasses of quantisers, attributes that refuse a copy); names the module.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> shared_copy(linear).weight.data_ptr() == linear.weight.data_ptr()
        True
    """
    _refuse(model)
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    try:
        twin = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as cause:
        raise UnsupportedError(
            f"the module tree of {type(model).__name__} cannot be copied: {_culprit(model)} "
            f"refuses ({cause}); drop that attribute or give a plain module"
        ) from cause
    for module in twin.modules():
        _rewire(module)
    twin.register_load_state_dict_pre_hook(_refuse_load)
    return twin


def replace_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` in at the parameter `name` and at every place tied to it.

    Args:
        model: changed in place; use a `shared_copy` where the original must stay.
        name: a parameter's name in `model`.
        tensor: an `nn.Parameter`, or a plain tensor (with or without a graph) of the same shape.

    Raises:
        UnknownNameError: no such parameter.
        UnsupportedError: the shapes differ.
    """
    places = tied_places(model, name)
    module, leaf = places[0]
    old = module._parameters[leaf]
    if old is not None and old.shape != tensor.shape:
        raise UnsupportedError(
            f"parameter {name!r} has shape {tuple(old.shape)}, "
            f"the tensor to put in has {tuple(tensor.shape)}"
        )
    for module, leaf in places:
        # `setattr` would refuse a plain tensor; torch.func.functional_call writes here too
        module._parameters[leaf] = tensor  # type: ignore[assignment]
        if isinstance(module, nn.RNNBase):
            link_flat_weights(module)


def parameter_at(model: nn.Module, name: str) -> nn.Parameter:
    """Return the parameter called `name`; ten times faster than `get_parameter`.

    Raises:
        UnknownNameError: no such parameter.
    """
    *path, leaf = name.split(".")
    module: nn.Module | None = model
    for step in path:
        module = None if module is None else module._modules.get(step)
    parameter = None if module is None else module._parameters.get(leaf)
    if parameter is None:
        known = [n for n, _ in model.named_parameters(remove_duplicate=False)]
        raise UnknownNameError("parameter", name, known)
    return parameter


def tied_places(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Return every (module, attribute) that holds the parameter called `name`.

    Raises:
        UnknownNameError: no such parameter.
    """
    return all_places(model, [name])[name]


def all_places(model: nn.Module, names: Iterable[str]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return `tied_places` of many names, in one walk over the modules.

    Raises:
        UnknownNameError: no such parameter.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, value in module._parameters.items():
            holders.setdefault(id(value), []).append((module, leaf))
    found = {}
    for name in names:
        if name not in known:
            raise UnknownNameError("parameter", name, known)
        found[name] = holders[id(known[name])]
    return found


def link_flat_weights(module: nn.RNNBase) -> None:
    """Point the list that torch's recurrent kernels read at the module's present parameters."""
    weights = [module._parameters.get(n) for n in module._flat_weights_names]
    # not through `_init_flat_weights`: on a GPU it would move the parameters to new storage
    module.__dict__["_flat_weights"] = weights
    module.__dict__["_flat_weight_refs"] = [None if w is None else weakref.ref(w) for w in weights]


def _rewire(module: nn.Module) -> None:
    if isinstance(module, nn.RNNBase):
        link_flat_weights(module)
    if _has_running_statistics(module) and not hasattr(module, "_graftwork_frozen"):
        module.training = False
        kind: Any = type(module)
        module.__class__ = _frozen_statistics(kind)


def _has_running_statistics(module: nn.Module) -> bool:
    if isinstance(module, _NormBase):
        return bool(module.track_running_stats)
    return isinstance(module, _SpectralNorm)


@functools.lru_cache(maxsize=256)
def _frozen_statistics(kind: type[Any]) -> type[Any]:
    """Return a subclass of `kind` that is always in eval mode: its buffers belong to the base."""
    ignore = property(lambda _: False, lambda *_: None)
    names = {
        "training": ignore,
        "_graftwork_frozen": True,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
    }
    return type(kind.__name__, (kind,), names)


def _refuse_load(module: nn.Module, *_: Any) -> None:
    raise UnsupportedError(
        f"load_state_dict on this {type(module).__name__} would overwrite the frozen base whose "
        "storage it shares; load into a module of your own and make a base of that"
    )


def _refuse(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedError(
                f"module {name or 'root'!r} is TorchScript, whose parameters cannot be adapted; "
                "give the Python module it was compiled from"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UnsupportedError(f"{name!r} is not initialised yet; run the module once first")
        reason = why_unsupported(tensor)
        if reason is not None:
            raise UnsupportedError(
                f"parameter {name!r} is {reason}; load the weights unpacked: "
                "graftwork.bases.load(..., quantise='int8') then holds them in 8 bits"
            )


def _culprit(model: nn.Module) -> str:
    return next(_uncopyable(model), "a part of it")


def _uncopyable(model: nn.Module) -> Iterator[str]:
    """Yield the attributes that cannot be copied, innermost first known."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if key.startswith("_") and key in nn.Module().__dict__:
                continue
            try:
                copy.deepcopy(value)
            except (TypeError, RuntimeError, NotImplementedError, AttributeError):
                yield f"attribute {key!r} of module {path or 'root'!r}"
