"""A delta from an ordinary fine-tuned checkpoint: what changed, as much of it as is wanted."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError, UnknownNameError
from graftwork.deltas._codec import entropy_bits
from graftwork.deltas._delta import BaseLike, Delta, fingerprint_of
from graftwork.deltas._fit import VALUE_BITS
from graftwork.deltas._quantise import quantise
from graftwork.deltas._terms import Sparse, Update


def between(
    base: BaseLike,
    tuned: nn.Module | Mapping[str, Tensor],
    *,
    keep: float | int | None = None,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    stored: str = "float16",
) -> Delta:
    """Return the delta that leads from `base` to a fine-tuned copy of it.

    With `keep`, only the differences of largest magnitude over all targets stay (ties: lowest
    index, in the order of the base's tensors): the non-adaptive baseline of Guo, Rush and Kim
    (2021). Zero differences are never kept.

    Arguments:
        base: the base the checkpoint was tuned from.
        tuned: a module like the base's, or a state dict. Names may be the module's own, canonical
            ones, or ones with the prefix of a task model.
        keep: None keeps every difference (as a dense term where that takes fewer bytes); a float
            in (0, 1] keeps that share of the targets' entries, rounded down; an int that many.
        targets: patterns of canonical names to look at; the others stay as in the base.
        ignore: patterns of names in `tuned` that are no part of the base ("classifier.*").
        stored: type of the values; see `quantise`.

    Raises:
        UnknownNameError: a pattern matches nothing.
        DeltaError: a tensor is missing, extra or mis-shaped, tied weights came apart, a buffer
            differs (a delta holds parameters only), nothing differs, or `keep` keeps nothing.

    Example:
        >>> delta = between(base, tuned_model, keep=0.005)  # doctest: +SKIP
        >>> save(delta, "task.safetensors")  # doctest: +SKIP
    """
    state = tuned.state_dict() if isinstance(tuned, nn.Module) else dict(tuned)
    differences = tuned_differences(base, state, targets, ignore)
    total = sum(difference.numel() for difference in differences.values())
    threshold, ties = _threshold(list(differences.values()), _count(keep, total))
    updates: dict[str, Update] = {}
    for name, difference in differences.items():
        magnitude = difference.abs()
        chosen = magnitude > threshold
        if ties:
            tied = (magnitude == threshold).nonzero()[:ties, 0]
            chosen[tied] = True
            ties -= tied.numel()
        if bool(chosen.any()):
            shape = base.names[name].shape
            updates[name] = _update(difference, chosen, shape, stored, dense=keep is None)
    if not updates:
        raise DeltaError("no entry of the targets differs from the base; is this the tuned model?")
    return Delta(
        updates=updates,
        fingerprint=fingerprint_of(base, updates),
        provenance={"method": "between", "keep": keep, "targets": list(targets), "stored": stored},
    )


def tuned_differences(
    base: BaseLike, state: Mapping[str, Tensor], targets: Sequence[str], ignore: Sequence[str]
) -> dict[str, Tensor]:
    """Return the flat differences of the targets in a tuned state dict; see `between`.

    Raises:
        UnknownNameError, DeltaError: as for `between`.
    """
    return _differences(base, _cut(base, state, ignore), base.names.match(targets))


def _update(
    difference: Tensor, chosen: Tensor, shape: tuple[int, ...], stored: str, *, dense: bool
) -> Update:
    positions = chosen.nonzero()[:, 0]
    numel, count = difference.numel(), positions.numel()
    if dense and (numel - count) * VALUE_BITS[stored] <= entropy_bits(numel, count):
        return Update(shape, dense=quantise(difference.reshape(shape), stored))
    return Update(shape, sparse=Sparse(positions, quantise(difference[positions], stored)))


def _count(keep: float | int | None, total: int) -> int:
    if keep is None:
        return total
    share = isinstance(keep, float)
    if isinstance(keep, bool) or not 0 < keep <= (1 if share else total):
        raise DeltaError(f"keep must be a share in (0, 1] or a count of 1 to {total}, got {keep!r}")
    count = math.floor(keep * total) if share else int(keep)
    if count == 0:
        raise DeltaError(f"keep={keep!r} of {total} entries keeps no value")
    return count


def _threshold(differences: list[Tensor], count: int) -> tuple[float, int]:
    """Return a magnitude and how many entries of just that magnitude belong to the `count` largest.

    All entries above it are among the largest. With fewer than `count` nonzero entries it is 0,
    and no zero entry is taken.
    """
    magnitudes = torch.cat([difference.abs() for difference in differences])
    if count >= int(torch.count_nonzero(magnitudes)):
        return 0.0, 0
    threshold = magnitudes.kthvalue(magnitudes.numel() - count + 1).values
    return float(threshold), count - int((magnitudes > threshold).sum())


def _differences(
    base: BaseLike, tuned: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """Return flat differences of the named tensors: float32, or float64 where one of the two is.

    Entries of a fine-tuned tensor lie within a factor of 2 of the base's, nearly all of them, and
    then their float32 difference is exact (Sterbenz, 1974).
    """
    parameters = dict(base.model.named_parameters(remove_duplicate=False))
    out: dict[str, Tensor] = {}
    for name in names:
        piece = base.names[name]
        if name not in tuned:
            raise DeltaError(
                f"the tuned model has no tensor {name!r}; narrow targets to leave it out"
            )
        ours = piece.of(parameters[piece.parameter].detach())
        if not ours.is_floating_point():
            continue
        theirs = tuned[name].detach().cpu()
        wide = torch.float64 in (ours.dtype, theirs.dtype)
        compute = torch.float64 if wide else torch.float32
        out[name] = (theirs.to(compute) - ours.cpu().to(compute)).reshape(-1)
        if not bool(torch.isfinite(out[name]).all()):
            raise DeltaError(f"tensor {name!r} of the tuned model holds NaN or infinity")
    return out


def _cut(base: BaseLike, state: Mapping[str, Tensor], ignore: Sequence[str]) -> dict[str, Tensor]:
    """Return the tuned tensors by canonical name, after checking every entry of `state`."""
    for pattern in ignore:
        if not fnmatch.filter(state, pattern):
            raise UnknownNameError("pattern to ignore", pattern, state)
    parameters = dict(base.model.named_parameters(remove_duplicate=False))
    buffers = dict(base.model.named_buffers(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore):
            continue
        if key in parameters:
            _check_shape(key, tensor, parameters[key])
            name = base.names.aliases.get(key, key)
            parameter = base.names.pieces[name].parameter if name in base.names.pieces else key
            pieces = base.names.of_parameter(parameter)
            if not pieces:
                raise DeltaError(f"parameter {key!r} has no canonical name in this base")
            for piece in pieces:
                _put(found, piece.name, piece.of(tensor.detach().contiguous()))
        elif key in buffers:
            _check_buffer(key, tensor, buffers[key])
        else:
            _put_canonical(base, found, key, tensor)
    return found


def _put_canonical(base: BaseLike, found: dict[str, Tensor], key: str, tensor: Tensor) -> None:
    try:
        piece = base.names[key]
    except UnknownNameError as error:
        raise DeltaError(
            f"the tuned model has {key!r}, which the base has not: {error}; "
            f"pass ignore=[{key!r}] if it is a head"
        ) from None
    if tuple(tensor.shape) != piece.shape:
        raise DeltaError(f"{key!r} has shape {tuple(tensor.shape)}, the base has {piece.shape}")
    _put(found, piece.name, tensor)


def _put(found: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    first = found.setdefault(name, tensor)
    if first is not tensor and not torch.equal(first, tensor):
        raise DeltaError(f"weights tied in the base came apart in the tuned model: {name!r}")


def _check_shape(key: str, tensor: Tensor, ours: Tensor) -> None:
    if tensor.shape != ours.shape:
        raise DeltaError(f"{key!r} has shape {tuple(tensor.shape)}, the base {tuple(ours.shape)}")


def _check_buffer(key: str, tensor: Tensor, ours: Tensor) -> None:
    _check_shape(key, tensor, ours)
    if not torch.equal(tensor.cpu().to(ours.dtype), ours.cpu()):
        raise DeltaError(
            f"buffer {key!r} differs from the base, and a delta holds parameters only; tune with "
            f"frozen statistics, or pass ignore=[{key!r}] to keep the base's"
        )
