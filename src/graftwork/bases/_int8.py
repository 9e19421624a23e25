"""Bases held in 8 bits: which weights, by torchao, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._errors import MissingDependencyError, UnknownNameError, UnsupportedError
from graftwork.bases._base import Base
from graftwork.bases._prints import print_of
from graftwork.deltas import QUANTISE, Int8Linear, Piece, all_places, is_int8, replace_parameter

KINDS = ("int8",)
_WORKS = "graftwork.bases.load(..., quantise='int8') of the floating weights works"
_NOISY = ("torchao", "torch.utils._pytree")
_PACKED: Mapping[str, str] = {
    "qweight": "GPTQ or AWQ",
    "W_q": "HQQ",
    "weight_packed": "compressed-tensors",
}
"""Names of integer tensors that quantisers keep instead of a weight -> whose they are."""


def in_8_bits(base: Base, quantise: str | None) -> Base:
    """Return `base` with its linear weights in 8 bits where `quantise` says so.

    Weights that a given module already holds so are taken as they are.

    Raises:
        UnknownNameError: no such quantisation.
        MissingDependencyError: without the extra `int8`.
        UnsupportedError: nothing would be quantised, a cast at load has rounded a weight before, a
            weight is not finite, or another quantiser's layer is in the module.
    """
    if quantise is not None and quantise not in KINDS:
        raise UnknownNameError("quantisation", quantise, KINDS)
    refuse_packed(base.model)
    if quantise is not None:
        _quantise(base)
    held = {n: p for n, p in _parameters(base).items() if is_int8(p)}
    if not held:
        return base
    _run_in_8_bits(base.model)
    reference = {name: p for name, p in base.reference.items() if name not in held}
    return dataclasses.replace(
        base,
        quantised=tuple(held),
        processing={**base.processing, QUANTISE: "int8"},
        stored={**base.stored, **{name: print_of(p) for name, p in held.items()}},
        reference=reference,
    )


def refuse_packed(model: nn.Module) -> None:
    """Raise where a module holds weights as a quantiser packs them, other than int8 of torchao.

    Raises:
        UnsupportedError: names the module, what was found, and what works.
    """
    for name, module in model.named_modules():
        own = {**module._parameters, **module._buffers}
        integers = {n for n, t in own.items() if t is not None and not t.is_floating_point()}
        found = next((whose for tensor, whose in _PACKED.items() if tensor in integers), None)
        if found is None and type(module).__module__.startswith("torch.ao.nn.quantized"):
            found = "torch.ao"
        if found is not None:
            raise UnsupportedError(
                f"module {name or 'root'!r} ({type(module).__name__}) is quantised by {found}, "
                f"which graftwork does not run; {_WORKS}"
            )


def refuse_quantised_folder(config: Any, where: object) -> None:
    """Raise where a config.json says that the folder's weights are quantised.

    Raises:
        UnsupportedError: names the method, and what works.
    """
    said = config.get("quantization_config") if isinstance(config, Mapping) else None
    if isinstance(said, Mapping):
        method = said.get("quant_method") or said.get("quant_type") or "an unnamed method"
        raise UnsupportedError(
            f"{where}: its weights are quantised by {method}, which graftwork does not load; "
            f"{_WORKS}"
        )


@contextmanager
def quiet_torchao() -> Iterator[None]:
    """Keep torchao's notes on kernels of other machines out of our output.

    transformers imports it, where it is installed, whenever a model is loaded.
    """
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _quantise(base: Base) -> None:
    chosen = _chosen(base)
    if not chosen:
        raise UnsupportedError(
            f"{type(base.model).__name__} has no weight to hold in 8 bits: those of nn.Linear are, "
            "where nothing else shares them (the Conv1D of GPT-2 is none); leave quantise out"
        )
    for piece in chosen:
        weight = base.model.get_parameter(piece.parameter).detach()
        _check_weight(base, piece, weight)
        eight = nn.Parameter(_rounded(weight), requires_grad=False)
        replace_parameter(base.model, piece.parameter, eight)


def _chosen(base: Base) -> list[Piece]:
    """Return the weights of plain linear layers that are whole tensors and held by nothing else."""
    linear = [
        f"{name}.weight" if name else "weight"
        for name, module in base.model.named_modules(remove_duplicate=False)
        if _is_linear(module)
    ]
    places = all_places(base.model, linear)
    alone = {
        name
        for name, held in places.items()
        if all(_is_linear(module) and leaf == "weight" for module, leaf in held)
    }
    # one column has no row to share a scale
    return [
        piece
        for piece in base.names.pieces.values()
        if piece.parameter in alone and piece.whole and piece.shape[1] > 1 and piece.numel
    ]


def _is_linear(module: nn.Module) -> bool:
    """Return whether a module is `nn.Linear` itself: a subclass may do what it likes."""
    return type(module) is nn.Linear and not is_int8(module.weight)


def _check_weight(base: Base, piece: Piece, weight: Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise UnsupportedError(f"{piece.name!r} holds NaN or infinity, which 8 bits cannot")
    stored = base.stored.get(piece.name)
    if stored is None:
        return
    kept = getattr(torch, stored.dtype)
    if torch.promote_types(kept, weight.dtype) != weight.dtype:
        raise UnsupportedError(
            f"quantise is of the stored values, and dtype would round {piece.name!r} from {kept} "
            f"to {weight.dtype} before: leave dtype out, or load by a wider one"
        )


def _rounded(weight: Tensor) -> Tensor:
    """Return a weight in 8 bits: symmetric, one float32 scale a row; made on the CPU everywhere."""
    try:
        with quiet_torchao():
            from torchao.quantization import Int8Tensor, PerRow
    except ImportError as cause:
        what = "bases.load(..., quantise='int8')"
        raise MissingDependencyError("torchao", "int8", what) from cause
    made = Int8Tensor.from_hp(weight.cpu().float(), granularity=PerRow())
    values, scale = (t.to(weight.device) for t in (made.qdata, made.scale))
    out: Tensor = Int8Tensor(values, scale, made.block_size, weight.dtype)
    return out


def _run_in_8_bits(model: nn.Module) -> None:
    """Let each plain linear layer run its 8 bits without keeping a floating copy.

    Raises:
        UnsupportedError: another layer holds a weight in 8 bits.
    """
    for name, module in model.named_modules():
        held = [leaf for leaf, p in module._parameters.items() if is_int8(p)]
        if not held:
            continue
        if type(module) not in (nn.Linear, Int8Linear) or held != ["weight"]:
            raise UnsupportedError(
                f"parameter {held[0]!r} of {name or 'root'!r} ({type(module).__name__}) is in 8 "
                "bits, which graftwork runs for the weight of nn.Linear only; load it unpacked"
            )
        module.__class__ = Int8Linear


def _parameters(base: Base) -> dict[str, nn.Parameter]:
    """Return the parameters that are whole tensors, by canonical name."""
    named = dict(base.model.named_parameters())
    pieces = base.names.pieces.values()
    return {p.name: named[p.parameter] for p in pieces if p.whole and p.parameter in named}
