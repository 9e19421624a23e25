"""Canonical names of a live module: task prefixes stripped, ties aliased, load-time fusions undone.

A Hugging Face loader may fuse what the file stores apart (experts stacked to 3-D, gate and up
projections joined). We run the library's own reverse conversion, the one `save_pretrained` uses, on
tensors without data, and read from the strides and offset of each result which part of which
parameter it is. So no architecture is named here. Where the reverse is not a strided part of one
parameter (the loader split or permuted a stored tensor), the live parameter keeps its own name.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from graftwork._errors import UnsupportedError
from graftwork.deltas import NameMap, Piece, held_by, identity_names


def canonical_names(model: nn.Module) -> NameMap:
    """Return the canonical names of `model`'s parameters.

    Raises:
        UnsupportedError: parameters share memory without being tied, have no data (meta device),
            or two of them would get the same canonical name.
        DeltaError: a parameter is not contiguous.
    """
    refuse_shared_memory(model)
    plain = identity_names(model)
    if not is_pretrained(model):
        return plain
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    pieces: dict[str, Piece] = {}
    renamed: dict[str, str] = {}
    for piece in _stored_pieces(model, plain):
        name = piece.name.removeprefix(f"{prefix}.") if prefix else piece.name
        if name in pieces:
            raise UnsupportedError(
                f"parameters {pieces[name].parameter!r} and {piece.parameter!r} of "
                f"{type(model).__name__} would both be called {name!r}"
            )
        pieces[name] = Piece(
            name, piece.parameter, piece.shape, piece.strides, piece.offset, piece.whole
        )
        renamed[piece.name] = name
        if piece.whole:
            renamed[piece.parameter] = name
    return NameMap(pieces, _aliases(plain, pieces, renamed, prefix))


def is_pretrained(model: nn.Module) -> bool:
    """Tell whether `model` is a transformers model, without importing transformers to know."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(model, library.PreTrainedModel)


def modern_spelling(model: Any) -> Callable[[str], str]:
    """Return what maps an old spelling in a weight file (LayerNorm.gamma) to that of today."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    legacy = [
        c
        for c in get_model_conversion_mapping(model, add_legacy=True)
        if isinstance(c, WeightRenaming)
    ]
    return lambda name: str(apply_renamings(name, legacy))


def refuse_shared_memory(model: nn.Module) -> None:
    """Raise where two different parameters overlap in memory: an update would hit both unseen.

    Raises:
        UnsupportedError: names both parameters.
    """
    spans: list[tuple[str, int, int, str]] = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UnsupportedError(f"parameter {name!r} has no data (meta device); load it first")
        held = held_by(parameter)[0]
        start, size = held.data_ptr(), held.numel() * held.element_size()
        if size:
            spans.append((str(parameter.device), start, start + size, name))
    spans.sort()
    for (device, _, end, name), (other_device, start, _, other) in itertools.pairwise(spans):
        if device == other_device and start < end:
            raise UnsupportedError(
                f"parameters {name!r} and {other!r} share memory without being tied; assign one "
                "nn.Parameter to both places, or clone one of them"
            )


def _aliases(
    plain: NameMap, pieces: Mapping[str, Piece], renamed: Mapping[str, str], prefix: str
) -> dict[str, str]:
    aliases = dict(renamed)
    for tied, parameter in plain.aliases.items():
        if parameter in renamed:
            aliases[tied] = renamed[parameter]
            aliases[tied.removeprefix(f"{prefix}.")] = renamed[parameter]
    if prefix:
        aliases |= {f"{prefix}.{name}": name for name in pieces}
    # a canonical name is never shadowed by an alias
    return {alias: name for alias, name in aliases.items() if alias not in pieces}


def _stored_pieces(model: nn.Module, plain: NameMap) -> Iterator[Piece]:
    """Yield the stored tensors that live in each parameter, in the module's parameter order."""
    found: dict[str, list[Piece]] = {}
    for piece in _reverted(model, plain):
        found.setdefault(piece.parameter, []).append(piece)
    for name, piece in plain.pieces.items():
        parts = found.get(name, [])
        if sum(part.numel for part in parts) == piece.numel and _disjoint(parts, piece):
            yield from parts
        else:
            yield piece


def _disjoint(parts: list[Piece], whole: Piece) -> bool:
    """Tell whether `parts`, whose sizes add up, cover the whole exactly once."""
    if len(parts) == 1:
        return True
    seen = torch.zeros(whole.numel, dtype=torch.bool)
    for part in parts:
        seen.as_strided(part.shape, part.strides, part.offset).fill_(True)
    return bool(seen.all())


def _reverted(model: Any, plain: NameMap) -> Iterator[Piece]:
    """Yield a piece for each result of the library's reverse conversion that is a strided part."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, revert_weight_conversion

    # prefixes depend on how the module was made, and legacy spellings are not saved again
    conversions = [
        c
        for c in get_model_conversion_mapping(model, add_legacy=False)
        if not isinstance(c, PrefixChange)
    ]
    if not conversions:
        yield from plain.pieces.values()
        return
    empty = {
        name: torch.empty(piece.shape, device="meta", dtype=torch.float32)
        for name, piece in plain.pieces.items()
    }
    owner = {_storage(tensor): name for name, tensor in empty.items()}
    with _ConversionsOf(model, conversions), torch.no_grad(), _ViewsOnly():  # type: ignore[no-untyped-call]
        stored = revert_weight_conversion(model, dict(empty))
    for name, tensor in stored.items():
        parameter = owner.get(_storage(tensor))
        if parameter is None:
            continue
        whole = tensor.shape == empty[parameter].shape and tensor.is_contiguous()
        yield Piece(
            name,
            parameter,
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            whole,
        )


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _ConversionsOf:
    """Lend the module a fixed list of conversions, so that how it was made does not matter."""

    def __init__(self, model: nn.Module, conversions: list[Any]) -> None:
        self.fields = vars(model)
        self.conversions = conversions
        self.had = "_weight_conversions" in self.fields
        self.before = self.fields.get("_weight_conversions")

    def __enter__(self) -> None:
        self.fields["_weight_conversions"] = self.conversions

    def __exit__(self, *_: object) -> None:
        if self.had:
            self.fields["_weight_conversions"] = self.before
        else:
            del self.fields["_weight_conversions"]


class _ViewsOnly(TorchDispatchMode):
    """Skip copies (`.contiguous()`, `.clone()`), so that a result keeps its source's storage."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        return func(*args, **(kwargs or {}))
