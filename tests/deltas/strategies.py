"""Random deltas of every term, stored type, support and port kind."""

import math

import torch
from hypothesis import strategies as st

from graftwork import deltas

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=6), JSON, max_size=3)
SHAPES = st.lists(st.integers(0, 12), max_size=3).map(tuple)


@st.composite
def stored(draw, shape, types=deltas.STORED):
    seed = draw(st.integers(0, 2**32 - 1))
    size = draw(st.sampled_from([1.0, 1e-3, 100.0]))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    return deltas.quantise(values, draw(st.sampled_from(types)))


@st.composite
def sparse_terms(draw, name, shape):
    numel = math.prod(shape)
    support = draw(st.sampled_from(["any", "all", "seeded", "runs"]))
    mask = None
    if support == "seeded":
        mask = deltas.SeededMask(draw(st.integers()), draw(st.just(name) | NAMES))
        positions = deltas.seeded_positions(mask, numel, draw(st.integers(0, numel)))
    elif support == "all":
        positions = torch.arange(numel)
    elif support == "runs":
        start = draw(st.integers(0, numel))
        positions = torch.arange(start, draw(st.integers(start, numel)))
    else:
        chosen = draw(st.sets(st.integers(0, numel - 1), max_size=30)) if numel else set()
        positions = torch.tensor(sorted(chosen), dtype=torch.int64)
    return deltas.Sparse(positions, draw(stored((positions.numel(),))), mask)


@st.composite
def low_rank_terms(draw, shape):
    rank = draw(st.integers(1, 3))
    if len(shape) == 3 and draw(st.booleans()):
        left = draw(stored((*shape[:2], rank)))
        right = draw(stored((shape[0], rank, shape[2])))
        return deltas.LowRank(left, right, draw(st.floats(-4, 4)))
    left = draw(stored((shape[0], rank)))
    right = draw(stored((rank, math.prod(shape[1:]))))
    return deltas.LowRank(left, right, draw(st.floats(-4, 4)))


@st.composite
def updates(draw, name="w", shape=None, terms=("sparse", "low_rank", "dense", "scale")):
    shape = draw(SHAPES) if shape is None else shape
    legal = [t for t in terms if t != "low_rank" or (shape and 0 not in shape)]
    chosen = draw(st.sets(st.sampled_from(legal), min_size=1))
    made = {}
    if "sparse" in chosen:
        made["sparse"] = draw(sparse_terms(name, shape))
    if "low_rank" in chosen:
        made["low_rank"] = draw(low_rank_terms(shape))
    if "dense" in chosen:
        made["dense"] = draw(stored(shape))
    if "scale" in chosen:
        kept = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
        made["scale"] = draw(stored(tuple(n if k else 1 for n, k in zip(shape, kept, strict=True))))
    return deltas.Update(shape, **made)


@st.composite
def ports(draw):
    tensors = draw(st.dictionaries(NAMES, SHAPES, max_size=3))
    made = {name: draw(stored(shape)) for name, shape in tensors.items()}
    if draw(st.booleans()):
        made["steps"] = torch.tensor(draw(st.integers(-(2**63), 2**63 - 1)))
    return deltas.Port(draw(NAMES), draw(OBJECTS), made)


@st.composite
def whole_deltas(draw):
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    made = {name: draw(updates(name)) for name in names}
    digests = st.text("0123456789abcdef", min_size=16, max_size=16) | st.text(max_size=5)
    prints = {
        name: deltas.TensorPrint(
            made[name].shape, draw(st.sampled_from(deltas.STORED)), draw(digests)
        )
        for name in names
        if draw(st.booleans())
    }
    if draw(st.booleans()):
        prints["only.printed"] = deltas.TensorPrint((2, 3), "float32", draw(digests))
    processing = draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
    return deltas.Delta(
        updates=made,
        ports=draw(st.dictionaries(NAMES, ports(), max_size=2)),
        signature=draw(OBJECTS),
        fingerprint=deltas.Fingerprint(prints, processing, draw(st.booleans())),
        provenance=draw(OBJECTS),
        extra=draw(OBJECTS),
    )


def same_stored(a, b):
    if a is None or b is None:
        return a is b
    if isinstance(a, deltas.Int8Blocks):
        return (
            isinstance(b, deltas.Int8Blocks)
            and a.shape == b.shape
            and same_bits(a.codes, b.codes)
            and same_bits(a.scales, b.scales)
        )
    return same_bits(a, b)


def same_bits(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


def same_update(a, b):
    if a.shape != b.shape or a.terms != b.terms:
        return False
    if a.sparse and not (
        same_bits(a.sparse.positions, b.sparse.positions)
        and same_stored(a.sparse.values, b.sparse.values)
        and a.sparse.mask == b.sparse.mask
    ):
        return False
    if a.low_rank and not (
        same_stored(a.low_rank.left, b.low_rank.left)
        and same_stored(a.low_rank.right, b.low_rank.right)
        and a.low_rank.factor == b.low_rank.factor
    ):
        return False
    return same_stored(a.dense, b.dense) and same_stored(a.scale, b.scale)


def same_port(a, b):
    return (a.kind, a.config, a.tensors.keys()) == (b.kind, b.config, b.tensors.keys()) and all(
        same_stored(a.tensors[name], b.tensors[name]) for name in a.tensors
    )


def same_delta(a, b):
    """Whether two deltas are equal, bit for bit."""
    return (
        a.updates.keys() == b.updates.keys()
        and a.ports.keys() == b.ports.keys()
        and all(same_update(a.updates[n], b.updates[n]) for n in a.updates)
        and all(same_port(a.ports[n], b.ports[n]) for n in a.ports)
        and (a.signature, a.fingerprint, a.provenance, a.extra)
        == (b.signature, b.fingerprint, b.provenance, b.extra)
    )
