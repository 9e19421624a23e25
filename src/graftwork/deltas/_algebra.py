"""Arithmetic of deltas: `add`, `scale`, `average`, as linear combinations of differences.

A delta turns W into `adapted(W)`. Every operation here is `W + sum_i w_i (adapted_i(W) - W)`, the
same rule as a row's list of (delta, weight); weights are 1 and 1 for `add`, 1 / n for `average`.
What each term of one tensor allows:

| term     | times a weight             | two or more on one tensor                               |
|----------|----------------------------|---------------------------------------------------------|
| sparse   | values times the weight    | union of supports, values summed                        |
| dense    | values times the weight    | summed                                                  |
| low-rank | the weight joins `factor`  | ranks concatenated, factors folded in where they differ |
| scale    | alone: 1 + w (s - 1);      | error: s W + D is not s (W + D / s) of stored values    |
|          | beside others: error       |                                                         |
| port     | stays as it is             | stays where bit-equal, otherwise an error               |

Sparse, dense and low-rank terms of one tensor stay side by side in one `Update`. Sums are taken in
float64 and rounded once, to the widest stored type among the parts (float16 with bfloat16 gives
float32). Weights of 1 with one part change no bit. A seeded mask survives where all parts share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwork._errors import DeltaError, FingerprintError
from graftwork.deltas._delta import Delta, Fingerprint
from graftwork.deltas._file import content_hash
from graftwork.deltas._int8 import QUANTISE
from graftwork.deltas._quantise import quantise, stored_name
from graftwork.deltas._same import same_port
from graftwork.deltas._terms import LowRank, Port, Sparse, Stored, Update, values_of

Weighted = tuple[Update, float]

_RANK = {"int8": 0, "float16": 1, "bfloat16": 1, "float32": 2, "float64": 3}


def add(a: Delta, b: Delta) -> Delta:
    """Return the sum of two deltas of one base (task arithmetic; Ilharco et al., 2023).

    Arguments:
        a: any delta.
        b: a delta for the same base. Signature and ports must be those of `a`, or be absent from
            one of the two.

    Raises:
        FingerprintError: the two were made for different bases.
        DeltaError: shapes differ, both change a tensor and one scales it, ports or signatures
            differ, or a sum is too large for its stored type.

    Example:
        >>> one = Update((3,), dense=torch.tensor([1.0, 0.0, 2.0]))
        >>> two = Update((3,), sparse=Sparse(torch.tensor([1]), torch.tensor([5.0])))
        >>> add(Delta({"w": one}), Delta({"w": two})).updates["w"].adapted(torch.zeros(3))
        tensor([1., 5., 2.])
    """
    return _combine([(a, 1.0), (b, 1.0)], "add")


def scale(delta: Delta, factor: float) -> Delta:
    """Return the delta whose difference is `factor` times as large; ports stay as they are.

    Raises:
        DeltaError: `factor` is not finite, a tensor has a scale term beside others, or a value
            becomes too large for its stored type.
    """
    return _combine([(delta, float(factor))], "scale")


def average(deltas: Sequence[Delta]) -> Delta:
    """Return the mean of the differences of deltas of one base; see `add` for what is legal.

    A tensor that some of them leave alone counts as a difference of zero there.

    Raises:
        FingerprintError, DeltaError: as for `add`; also for an empty sequence.
    """
    if not deltas:
        raise DeltaError("the average of no deltas is not defined")
    return _combine([(delta, 1.0 / len(deltas)) for delta in deltas], "average")


def negate(delta: Delta) -> Delta:
    """Return the delta that undoes another: its difference times -1 (Ilharco et al., 2023).

    Raises:
        DeltaError: as for `scale`.
    """
    return scale(delta, -1.0)


def forget(delta: Delta, amount: float = 1.0) -> Delta:
    """Return the delta that makes a base forget a task: `-amount` times what it learnt.

    Ilharco et al. (2023, sec. 3) choose the amount on held-out data, as large as leaves the other
    abilities alone. Ports and signature belong to the task and are left out.

    Raises:
        DeltaError: as for `scale`; also for an amount that is not positive.
    """
    if not amount > 0:
        raise DeltaError(f"the amount to forget is {amount}, it must be positive")
    bare = Delta(delta.updates, fingerprint=delta.fingerprint, provenance=delta.provenance)
    return scale(bare, -amount)


def _combine(parts: list[tuple[Delta, float]], operation: str) -> Delta:
    if not all(math.isfinite(weight) for _, weight in parts):
        raise DeltaError(f"{operation}: the factor {parts[0][1]} is not finite")
    deltas = [delta for delta, _ in parts]
    fingerprint = join_fingerprints([delta.fingerprint for delta in deltas])
    names = list(dict.fromkeys(name for delta in deltas for name in delta.updates))
    updates: dict[str, Update] = {}
    for name in names:
        present = [(d.updates[name], weight) for d, weight in parts if name in d.updates]
        try:
            updates[name] = combine_updates(present)
        except DeltaError as error:
            raise DeltaError(f"{operation} of {name!r}: {error}") from None
    provenance: dict[str, Any] = {
        "operation": operation,
        "of": sorted(content_hash(delta) for delta in deltas),
    }
    if operation == "scale":
        provenance["factor"] = parts[0][1]
    return Delta(
        updates=updates,
        ports=join_ports(deltas),
        signature=join_signatures(deltas),
        fingerprint=fingerprint,
        provenance=provenance,
    )


def combine_updates(parts: list[Weighted]) -> Update:
    """Return `sum_i w_i tau_i` of one tensor, term by term.

    Raises:
        DeltaError: the terms do not add (see the table of this file).
    """
    first, weight = parts[0]
    if len(parts) == 1 and weight == 1.0:
        return first
    for update, _ in parts[1:]:
        if update.shape != first.shape:
            raise DeltaError(f"shapes {first.shape} and {update.shape} differ")
    if any(update.scale is not None for update, _ in parts):
        return _weigh_scale(parts)
    return Update(
        first.shape,
        sparse=_sum_sparse([(u.sparse, w) for u, w in parts if u.sparse is not None]),
        low_rank=_sum_low_rank([(u.low_rank, w) for u, w in parts if u.low_rank is not None]),
        dense=_sum_dense([(u.dense, w) for u, w in parts if u.dense is not None]),
    )


def _weigh_scale(parts: list[Weighted]) -> Update:
    update, weight = parts[0]
    if len(parts) > 1 or update.terms != ("scale",) or update.scale is None:
        raise DeltaError(
            "a scale term adds only to tensors that nothing else changes, and is weighed only "
            "alone; fold it into a dense term with between(base, view(base, delta))"
        )
    scaled = 1.0 + weight * (values_of(update.scale).double() - 1.0)
    return Update(update.shape, scale=quantise(scaled, stored_name(update.scale)))


def _sum_sparse(parts: list[tuple[Sparse, float]]) -> Sparse | None:
    if not parts:
        return None
    supports = [sparse.positions.cpu().numpy() for sparse, _ in parts]
    union = supports[0]
    if not all(np.array_equal(union, support) for support in supports[1:]):
        union = np.unique(np.concatenate(supports))
    total = np.zeros(union.size)
    for (sparse, weight), support in zip(parts, supports, strict=True):
        total[np.searchsorted(union, support)] += weight * _double(sparse.values).numpy()
    masks = {sparse.mask for sparse, _ in parts}
    mask = masks.pop() if len(masks) == 1 and union is supports[0] else None
    stored = _widest([sparse.values for sparse, _ in parts])
    return Sparse(torch.from_numpy(union), quantise(torch.from_numpy(total), stored), mask)


def _sum_dense(parts: list[tuple[Stored, float]]) -> Stored | None:
    if not parts:
        return None
    total = torch.zeros(tuple(parts[0][0].shape), dtype=torch.float64)
    for stored, weight in parts:
        total += weight * _double(stored)
    return quantise(total, _widest([stored for stored, _ in parts]))


def _sum_low_rank(parts: list[tuple[LowRank, float]]) -> LowRank | None:
    if not parts:
        return None
    factors = [term.factor * weight for term, weight in parts]
    if len(parts) == 1:
        return LowRank(parts[0][0].left, parts[0][0].right, factors[0])
    shared = factors[0] if len(set(factors)) == 1 else 1.0
    folds = [1.0 if shared == factor else factor for factor in factors]
    lefts, rights = [term.left for term, _ in parts], [term.right for term, _ in parts]
    if len({term.batched for term, _ in parts}) > 1:
        raise DeltaError(
            "a product over the whole tensor and one for each of its matrices do not add as "
            "low-rank terms; fold one into a dense term with between(base, view(base, delta))"
        )
    left = torch.cat([_double(s) * fold for s, fold in zip(lefts, folds, strict=True)], dim=-1)
    right = torch.cat([_double(stored) for stored in rights], dim=-2)
    return LowRank(quantise(left, _widest(lefts)), quantise(right, _widest(rights)), factor=shared)


def _widest(stored: Sequence[Stored]) -> str:
    names = {stored_name(part) for part in stored}
    widest = max(names, key=lambda name: (_RANK[name], name))
    return "float32" if {"float16", "bfloat16"} <= names and _RANK[widest] == 1 else widest


def _double(stored: Stored) -> Tensor:
    return values_of(stored).detach().cpu().double()


def join_fingerprints(prints: list[Fingerprint]) -> Fingerprint:
    """Return the fingerprint of a delta made of deltas with these.

    Raises:
        FingerprintError: they are of different bases.
    """
    tensors = dict(prints[0].tensors)
    processing = dict(prints[0].processing)
    # a base in 8 bits has the prints of the floating one where neither touches a weight
    bits = {f.processing.get(QUANTISE, "no") for f in prints if not f.asserted}
    if len(bits) > 1:
        raise FingerprintError(
            f"the deltas were made for different bases: {QUANTISE!r} is "
            f"{' and '.join(sorted(bits))}; move one to the base of the other by rebase"
        )
    for fingerprint in prints[1:]:
        for name, tensor_print in fingerprint.tensors.items():
            if tensors.setdefault(name, tensor_print) != tensor_print:
                raise FingerprintError(
                    f"the deltas were made for different bases: {name!r} is {tensors[name]} for "
                    f"one and {tensor_print} for another"
                )
        for key, value in fingerprint.processing.items():
            if processing.setdefault(key, value) != value:
                raise FingerprintError(
                    f"the deltas were made for different processing: {key!r} is "
                    f"{processing[key]!r} for one and {value!r} for another"
                )
    return Fingerprint(tensors, processing, any(f.asserted for f in prints))


def join_ports(deltas: list[Delta]) -> dict[str, Port]:
    """Return the ports of all; those of one name must be equal to the bit.

    Raises:
        DeltaError: two of one name differ.
    """
    ports: dict[str, Port] = {}
    for delta in deltas:
        for name, port in delta.ports.items():
            if not same_port(ports.setdefault(name, port), port):
                raise DeltaError(
                    f"port {name!r} differs between the deltas; keep one of them: merge with "
                    "ports_of=0 (--ports-of 0), or give dataclasses.replace(delta, ports={}, "
                    "signature={}) for the others"
                )
    return ports


def join_signatures(deltas: list[Delta]) -> Mapping[str, Any]:
    """Return the one signature of those that have one.

    Raises:
        DeltaError: two differ.
    """
    signatures = [delta.signature for delta in deltas if delta.signature]
    if any(signature != signatures[0] for signature in signatures[1:]):
        raise DeltaError(
            "the deltas have different signatures; keep one of them: merge with "
            "ports_of=0 (--ports-of 0), or give dataclasses.replace(delta, ports={}, "
            "signature={}) for the others"
        )
    return signatures[0] if signatures else {}
