"""Moving a delta to a new version of its base, measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import DeltaError
from graftwork.deltas._delta import BaseLike, Delta, fingerprint_of
from graftwork.deltas._file import content_hash
from graftwork.deltas._int8 import QUANTISE
from graftwork.deltas._plan import check, make_plan


@dataclass(frozen=True, slots=True)
class RebasedTensor:
    """What the new version means for one tensor of a delta; Frobenius norms.

    Attributes:
        name: canonical name.
        base_change: ||W_new - W_old|| / ||W_old||.
        size: ||D_old|| / ||W_old||, D the difference that the delta makes.
        difference_change: ||D_new - D_old|| / ||D_old||: 0 for added terms; a scale multiplies what
            it is given, so its difference changes with the weight.
        crossed: ||W_new - W_old|| / ||D_old||: above 1 the base has moved further than the delta
            ever did, and what was learnt may mean nothing here.
    """

    name: str
    base_change: float
    size: float
    difference_change: float
    crossed: float


@dataclass(frozen=True, slots=True)
class Rebased:
    """A delta on a new version of its base, and what was measured.

    Attributes:
        delta: with the prints of the new base; values as they were.
        tensors: one entry a tensor, those whose base moved most first.
        places: tensors at which a port lies inside the base and that changed.
    """

    delta: Delta
    tensors: tuple[RebasedTensor, ...]
    places: tuple[str, ...]

    @property
    def base_change(self) -> float:
        """The largest relative change of a touched tensor."""
        return max((t.base_change for t in self.tensors), default=0.0)

    @property
    def crossed(self) -> float:
        """The largest change of a tensor over what the delta does to it."""
        return max((t.crossed for t in self.tensors), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as JSON values."""
        return {
            "base_change": self.base_change,
            "crossed": self.crossed if math.isfinite(self.crossed) else None,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "places": list(self.places),
        }


def rebase(delta: Delta, old: BaseLike, new: BaseLike) -> Rebased:
    """Return `delta` for a new version of its base: the same terms, other fingerprints.

    The differences are kept, not the adapted weights (for those, `between(new, view(old, delta))`
    gives a delta of another size). Nothing says that a task still works there: the result holds
    what was measured of the weights, its provenance says that it was rebased, and the metrics of
    the old base are taken out of it. Evaluate it anew.

    Arguments:
        delta: made for `old`.
        old: the base that it was made for.
        new: has the same tensors, in shape, at least where the delta touches them.

    Raises:
        FingerprintError: the delta was not made for `old`, or the new base processes inputs
            otherwise (tokenizer, pooling, ...).
        UnknownNameError: the new base lacks a tensor.
        DeltaError: a tensor has another shape there.

    Example:
        >>> from graftwork.bases import load
        >>> from graftwork.deltas import Update
        >>> one, two = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> old = load(one)
        >>> update = Update((1, 2), dense=torch.ones(1, 2))
        >>> delta = Delta({"weight": update}, fingerprint=fingerprint_of(old, ["weight"]))
        >>> moved = rebase(delta, old, load(two))
        >>> [tensor.name for tensor in moved.tensors], moved.base_change > 0
        (['weight'], True)
    """
    check(old, delta)
    touched = list(fingerprint_of(old, delta.updates, delta.ports).tensors)
    for name in touched:
        shapes = old.names[name].shape, new.names[name].shape
        if shapes[0] != shapes[1]:
            raise DeltaError(
                f"{name!r} is {shapes[0]} in the old base and {shapes[1]} in the new one; a delta "
                "moves between versions of one architecture only"
            )
    provenance = {key: v for key, v in delta.provenance.items() if key not in ("metrics", "unread")}
    provenance["rebased"] = content_hash(delta)
    prints = fingerprint_of(new, delta.updates, delta.ports).tensors
    processing = {k: v for k, v in delta.fingerprint.processing.items() if k != QUANTISE}
    processing |= {k: v for k, v in new.processing.items() if k == QUANTISE}
    made_for = replace(delta.fingerprint, tensors=prints, processing=processing)
    moved = replace(delta, fingerprint=made_for, provenance=provenance)
    make_plan(new, [(moved, 1.0)])
    tensors = [_measure(name, delta, old, new) for name in delta.updates]
    before = old.prints(touched)
    return Rebased(
        moved,
        tuple(sorted(tensors, key=lambda tensor: -tensor.base_change)),
        tuple(n for n in touched if n not in delta.updates and before[n] != prints[n]),
    )


@torch.no_grad()
def _measure(name: str, delta: Delta, old: BaseLike, new: BaseLike) -> RebasedTensor:
    before, after = (_weight(base, name) for base in (old, new))
    update = delta.updates[name]
    first = update.adapted(before) - before
    second = update.adapted(after) - after
    moved = float((after - before).norm())
    return RebasedTensor(
        name=old.names[name].name,
        base_change=_part(moved, before),
        size=_part(float(first.norm()), before),
        difference_change=_part(float((second - first).norm()), first),
        crossed=_part(moved, first),
    )


def _weight(base: BaseLike, name: str) -> Tensor:
    piece = base.names[name]
    return piece.of(base.model.get_parameter(piece.parameter).detach()).double().cpu()


def _part(norm: float, of: Tensor) -> float:
    whole = float(of.norm())
    if whole == 0.0:
        return 0.0 if norm == 0.0 else math.inf
    return norm / whole
