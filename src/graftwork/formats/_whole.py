"""Tensors that PEFT stores whole: biases, `modules_to_save`, saved embeddings, heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaFileError, UnknownNameError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import Piece, Update, quantise, values_of
from graftwork.formats._heads import Heads
from graftwork.formats._peft_config import PeftConfig
from graftwork.formats._peft_keys import Adapter
from graftwork.formats._places import find_piece, known_names, refuse_ties, tied_names


def take_whole(
    updates: dict[str, Update], base: Base, config: PeftConfig, adapter: Adapter
) -> Heads:
    """Add what the stored tensors change of the base to `updates`; return those of heads.

    A stored tensor that equals the base's changes nothing and gives no update.

    Raises:
        DeltaFileError: a tensor that the config does not explain, or that it promises and the file
            lacks; a shape or a buffer other than the base's.
        UnsupportedError: a tied parameter of which one name is changed only.
    """
    for name in adapter.whole:
        _check_explained(base, config, adapter, name)
    heads = change_whole(
        updates, base, adapter.whole, lambda name: _head_module(base, config, name)
    )
    _check_promised(base, config, adapter)
    return heads


def change_whole(
    updates: dict[str, Update],
    base: Base,
    whole: Mapping[str, Tensor],
    head_module: Callable[[str], str],
) -> Heads:
    """Add what stored tensors change of the base to `updates`; return those of heads.

    Args:
        updates: get a dense term for each tensor that differs from the base's.
        base: the base.
        whole: name -> stored tensor.
        head_module: from the name of a tensor that the base lacks to the module it belongs to.
    """
    heads: Heads = {}
    known, buffers = known_names(base), dict(base.model.named_buffers())
    done: set[str] = set()
    for name, tensor in whole.items():
        if name in known:
            piece = find_piece(base, name)
            if piece.name not in done:
                _change(updates, base, whole, name)
            done.add(piece.name)
        elif name in buffers:
            _same_buffer(name, tensor, buffers[name])
        else:
            module = head_module(name)
            heads.setdefault(module, {})[name.removeprefix(f"{module}.")] = tensor
    return heads


def add_dense(updates: dict[str, Update], piece: Piece, difference: Tensor) -> None:
    """Add a difference to a parameter's dense term.

    Raises:
        UnsupportedError: the parameter is scaled: the difference would be scaled too.
    """
    shape, before = piece.shape, updates.get(piece.name)
    if before is None:
        updates[piece.name] = Update(shape, dense=quantise(difference.reshape(shape), "float32"))
        return
    if before.scale is not None:
        raise UnsupportedError(
            f"{piece.parameter!r} is scaled by the adapter and stored whole as well; the two have "
            "no common term"
        )
    total = difference.reshape(shape)
    if before.dense is not None:
        total = total + values_of(before.dense).double()
    updates[piece.name] = dataclasses.replace(before, dense=quantise(total, "float32"))


def _change(updates: dict[str, Update], base: Base, whole: Mapping[str, Tensor], name: str) -> None:
    piece, tensor = find_piece(base, name), whole[name]
    if tuple(tensor.shape) != piece.shape:
        raise DeltaFileError(
            f"the stored tensor {name!r} has shape {tuple(tensor.shape)}, the base has "
            f"{piece.shape}; was its vocabulary resized, or is this another base?"
        )
    ours = piece.of(base.model.get_parameter(piece.parameter)).detach().cpu()
    difference = tensor.double() - ours.double()
    if not bool(difference.any()):
        return
    twins = [_name_in(whole, base, other) for other in tied_names(base, piece)]
    if not all(twin is not None and torch.equal(whole[twin], tensor) for twin in twins):
        refuse_ties(base, piece, f"the file changes {name!r} alone")
    add_dense(updates, piece, difference)


def _name_in(whole: Mapping[str, Tensor], base: Base, live: str) -> str | None:
    canonical = base.names.aliases.get(live, live)
    return next((n for n in whole if n in (live, canonical)), None)


def _check_explained(base: Base, config: PeftConfig, adapter: Adapter, name: str) -> None:
    module = name.rpartition(".")[0]
    adapted = module in adapter.parts
    if config.saves(name) or (config.bias == "all" and name.endswith("bias")):
        return
    if config.bias == "lora_only" and name.endswith(".bias") and adapted:
        return
    if _is_embedding(base, name):
        return
    raise DeltaFileError(
        f"the file stores {name!r} whole, and nothing in its config says why: bias is "
        f"{config.bias!r}, modules_to_save is {list(config.saved)}"
    )


def _is_embedding(base: Base, name: str) -> bool:
    """Tell whether PEFT stores this of its own accord (save_embedding_layers)."""
    if name not in known_names(base) or not name.endswith("weight"):
        return False
    piece = find_piece(base, name)
    module = base.model.get_submodule(piece.parameter.rpartition(".")[0])
    ends = [getattr(base.model, f"get_{end}_embeddings", lambda: None)() for end in _ENDS]
    return isinstance(module, nn.Embedding) or module in ends


_ENDS = ("input", "output")


def _check_promised(base: Base, config: PeftConfig, adapter: Adapter) -> None:
    stored = [m for m in config.saved if any(f".{m}." in f".{name}" for name in adapter.whole)]
    for module in config.saved:
        # PEFT names "classifier" and "score" for every model, whichever of the two it has
        ours = any(f".{module}." in f".{name}" for name in known_names(base))
        if module not in stored and (ours or not stored):
            raise DeltaFileError(
                f"modules_to_save names {module!r}, but the file stores nothing of it"
            )
    for module in adapter.parts if config.bias != "none" else ():
        name = f"{module}.bias"
        if name in known_names(base) and name not in adapter.whole:
            raise DeltaFileError(f"bias is {config.bias!r}, but the file has no {name!r}")


def _same_buffer(name: str, tensor: Tensor, ours: Tensor) -> None:
    if tensor.shape != ours.shape or not torch.equal(tensor.to(ours.dtype), ours.cpu()):
        raise DeltaFileError(
            f"the stored buffer {name!r} differs from the base's, and a delta holds parameters "
            "only; train with frozen statistics"
        )


def _head_module(base: Base, config: PeftConfig, name: str) -> str:
    """Return the stored module, unknown to the base, that `name` belongs to."""
    words = name.split(".")
    inside = [".".join(words[:n]) for n in range(1, len(words))]
    module = next((path for path in inside if config.saves(path)), None)
    if module is None or any(known.startswith(f"{module}.") for known in known_names(base)):
        raise UnknownNameError("parameter of the base", name, base.names.pieces)
    return module
