"""Whatever the bytes say: a delta or an error of ours, in memory bounded by them (law 11)."""

import copy
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.deltas.crafting import OUTER, put_together, repair, take_apart, wrap
from tests.deltas.strategies import JSON, whole_deltas

from graftwork import deltas
from graftwork._errors import DeltaFileError
from graftwork.deltas import (
    Delta,
    Fingerprint,
    LowRank,
    Port,
    SeededMask,
    Sparse,
    TensorPrint,
    Update,
)

# run-time type checkers look at random items, also while strategies draw
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside")


def sample():
    """Every term, support and stored type in one file."""
    mask = SeededMask(5, "elsewhere")
    values = torch.linspace(-1, 1, 40)
    store = lambda n, kind: deltas.quantise(values[:n], kind)  # noqa: E731
    prints = {
        "any": TensorPrint((10, 30), "float32", "00112233445566ff"),
        "alone": TensorPrint((7,), "float32", "not hex"),
    }
    updates = {
        "any": Update((10, 30), sparse=Sparse(torch.arange(0, 200, 17), store(12, "int8"))),
        "runs": Update((10, 30), sparse=Sparse(torch.arange(30, 70), store(40, "float16"))),
        "all": Update((4,), sparse=Sparse(torch.arange(4), store(4, "bfloat16"))),
        "seeded": Update(
            (90,), sparse=Sparse(deltas.seeded_positions(mask, 90, 9), store(9, "float64"), mask)
        ),
        "low": Update(
            (3, 4), low_rank=LowRank(store(3, "float16")[:, None], store(4, "float32")[None], 0.5)
        ),
        "both": Update(
            (2, 2),
            dense=deltas.quantise(values[:4].reshape(2, 2), "int8"),
            scale=store(2, "float32"),
        ),
    }
    port = Port(
        "head", {"in_features": 3}, {"weight": values[:6].reshape(2, 3), "n": torch.tensor(3)}
    )
    return Delta(
        updates,
        {"head": port},
        {"kind": "classification", "labels": ["a", "b"]},
        Fingerprint(prints, {"pooling": "mean"}, True),
        {"seed": 0},
        {"later": 1.5},
    )


DATA = deltas.dumps(sample())


def load_or_fail(data):
    """Return the delta or None; any error but ours escapes."""
    try:
        delta = deltas.loads(data)
    except DeltaFileError:
        return None
    # what was accepted can be written again and measured
    assert deltas.loads(deltas.dumps(delta)) is not None
    return delta


def peak(data):
    tracemalloc.start()
    try:
        load_or_fail(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=400))
def test_random_bytes(data):
    assert load_or_fail(data) is None
    assert load_or_fail(repair(DATA[:8] + data)) is None
    load_or_fail(wrap(data))


def test_every_truncation():
    for size in range(len(DATA)):
        assert load_or_fail(DATA[:size]) is None
        assert load_or_fail(repair(DATA[:size])) is None
    assert load_or_fail(DATA + b"\0") is None
    assert load_or_fail(repair(DATA + b"\0")) is None


def test_every_flipped_byte():
    for at in range(len(DATA)):
        damaged = bytearray(DATA)
        damaged[at] ^= 1 << (at % 8)
        assert load_or_fail(bytes(damaged)) is None, at
        load_or_fail(repair(bytes(damaged)))


@settings(max_examples=80)
@given(whole_deltas(), st.data())
def test_damaged_bodies_with_a_right_checksum(delta, data):
    table, body = take_apart(deltas.dumps(delta))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    load_or_fail(put_together(table, bytes(damaged)))


def paths(value, at=()):
    yield at
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from paths(inner, (*at, key))


TABLE, BODY = take_apart(DATA)
NUMBERS = st.sampled_from(
    [-1, 0, 1, 7, 8, 56, 57, 255, 256, 2**31, 2**53, 2**63 - 1, 2**63, 2**200]
)


@settings(max_examples=400)
@given(st.data())
def test_lies_in_the_table(data):
    table = copy.deepcopy(TABLE)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([p for p in paths(table) if p]))
        inner = table
        for key in path[:-1]:
            inner = inner[key]
        if data.draw(st.integers(0, 4)) == 0:
            del inner[path[-1]]
        else:
            other = st.sampled_from([p for p in paths(TABLE) if p]).map(lambda p: fetch(TABLE, p))
            inner[path[-1]] = data.draw(NUMBERS | JSON | other)
    load_or_fail(put_together(table, BODY))


def fetch(value, path):
    for key in path:
        value = value[key]
    return copy.deepcopy(value)


def test_the_table_put_together_again_is_accepted():
    assert load_or_fail(put_together(TABLE, BODY)) is not None
    assert load_or_fail(put_together(TABLE, BODY, pack=False)) is not None


def entry(**fields):
    return {"tensors": [{"name": "w", "shape": [10], **fields}]}


HUGE = 2**59
LIES = {
    "dense": (entry(shape=[HUGE], dense="float16"), "announces"),
    "dense int8": (entry(shape=[HUGE], dense="int8"), "announces"),
    "shape beyond": (entry(shape=[2**31, 2**31, 2**31], dense="int8"), "more than 2.60"),
    "shape empty but huge": (entry(shape=[0, 2**62], dense="int8"), "more than 2.60"),
    "all": (
        entry(shape=[HUGE], sparse={"count": HUGE, "all": True, "stored": "int8"}),
        "announces",
    ),
    "all of fewer": (
        entry(sparse={"count": 9, "all": True, "stored": "int8"}),
        "keeps all entries, but 9 of 10",
    ),
    "seeded": (
        entry(
            shape=[HUGE],
            sparse={"count": HUGE // 2, "seeded": {"seed": 0, "version": 1}, "stored": "int8"},
        ),
        "announces",
    ),
    "seeded of another version": (
        entry(sparse={"count": 0, "seeded": {"seed": 0, "version": 2}, "stored": "int8"}),
        "version 2",
    ),
    "more than all": (
        entry(sparse={"count": 11, "rice": [0, 2], "stored": "int8"}),
        "keeps 11 of 10",
    ),
    "rice": (
        entry(shape=[HUGE], sparse={"count": 2**40, "rice": [56, 0], "stored": "int8"}),
        "announces",
    ),
    "rice low": (
        entry(shape=[HUGE], sparse={"count": 0, "rice": [2**62, 0], "stored": "int8"}),
        "low bits is not valid",
    ),
    "runs": (
        entry(
            shape=[HUGE],
            sparse={
                "count": 2**40,
                "runs": {"count": 2**40, "starts": [0, 0], "ends": [0, 0]},
                "stored": "int8",
            },
        ),
        "announces",
    ),
    "rank": (
        entry(
            shape=[10, 10],
            low_rank={"rank": 2**50, "factor": 1.0, "left": "float16", "right": "float16"},
        ),
        "announces",
    ),
    "rank 0": (
        entry(
            shape=[10, 10],
            low_rank={"rank": 0, "factor": 1.0, "left": "float16", "right": "float16"},
        ),
        "left factor",
    ),
    "no term": (entry(), "neither a term nor a fingerprint"),
    "an unknown term": (entry(dense="int8", gate="int8"), "unknown field 'gate'"),
    "an unknown type": (entry(dense="float8"), "'float8' is not a stored type"),
    "integers in an update": (entry(dense="int64"), "'int64' is not a stored type"),
    "two of one name": (
        {"tensors": [{"name": "w", "shape": [0], "dense": "int8"}] * 2},
        "same name",
    ),
    "an unknown part": ({"hooks": ["os.system"]}, "unknown field 'hooks'"),
    "no table": ([], "header must be an object"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_sizes_is_found_before_memory_is_taken(lie):
    table, message = LIES[lie]
    data = put_together(table, b"")
    with pytest.raises(DeltaFileError, match=message):
        deltas.loads(data)
    assert peak(data) < 200_000


def test_a_seeded_mask_that_drifted_is_found():
    table, body = take_apart(DATA)
    seeded = next(e for e in table["tensors"] if e["name"] == "seeded")
    seeded["sparse"]["seeded"]["seed"] += 1
    with pytest.raises(DeltaFileError, match="not the one that was trained"):
        deltas.loads(put_together(table, body))


def test_non_finite_values_are_refused():
    for dtype in (np.float16, np.float32, np.float64):
        name = np.dtype(dtype).name
        body = np.array([1.0, np.inf], dtype=dtype).tobytes()
        with pytest.raises(DeltaFileError, match="NaN or infinity"):
            deltas.loads(put_together(entry(shape=[2], dense=name), body))


TEXTS = {
    "deep lists": (b"[" * 100_000, "not valid JSON"),
    "deep objects": (b'{"a":' * 100_000, "not valid JSON"),
    "a long number": (b'{"provenance":{"a":' + b"9" * 10_000 + b"}}", "not valid JSON"),
    "infinity": (b'{"provenance":{"a":1e999}}', "not a finite number"),
    "a constant": (b'{"provenance":{"a":NaN}}', "NaN is not JSON"),
    "a key twice": (b'{"provenance":{},"provenance":{}}', "a key occurs twice"),
    "not UTF-8": (b'{"\xff":1}', "not valid JSON"),
    "nothing": (b"", "not valid JSON"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_are_no_table(kind):
    text, message = TEXTS[kind]
    with pytest.raises(DeltaFileError, match=message):
        deltas.loads(put_together(text, b"", pack=False))


def test_bombs_take_no_more_memory_than_their_size_allows():
    plain = b'{"provenance":{"a":"' + b"x" * 50_000_000 + b'"}}'
    honest = put_together(plain, b"")
    with pytest.raises(DeltaFileError, match="would unpack to 50000"):
        deltas.loads(honest)
    # one that understates its size is stopped there
    lying = put_together(plain, b"", plain_size=1000)
    with pytest.raises(DeltaFileError, match="does not unpack to 1000"):
        deltas.loads(lying)
    assert peak(honest) < 300_000
    assert peak(lying) < 300_000
    # nothing may hide behind the packed table, and it must be whole
    for bad in (
        put_together(b"{}" * 50, b"", trailing=b"more"),
        put_together(b'{"a":"' + b"x" * 99 + b'"}', b"", plain_size=108),
    ):
        with pytest.raises(DeltaFileError, match="does not unpack"):
            deltas.loads(bad)


def test_the_worst_table_stays_within_the_stated_multiple():
    # objects cost Python the most for each byte of JSON
    text = b'{"provenance":{"a":[' + b",".join([b"{}"] * 30_000) + b"]}}"
    body = b""
    while len(text) > 16 * (len(zlib.compress(text, 9)) + len(body) + 24):
        body += bytes(1000)
    data = put_together(text, body)
    assert peak(data) < 600 * len(data) + 100_000


def test_memory_of_honest_files_is_a_small_multiple():
    mask = SeededMask(0, "w")
    k = 100_000
    for update in (
        Update((10**7,), sparse=Sparse(torch.arange(0, 10**7, 100), torch.ones(k).half())),
        Update((k,), sparse=Sparse(torch.arange(k), torch.ones(k).half())),
        Update(
            (10**9,),
            sparse=Sparse(deltas.seeded_positions(mask, 10**9, k), torch.ones(k).half(), mask),
        ),
    ):
        data = deltas.dumps(Delta({"w": update}))
        tracemalloc.start()
        deltas.loads(data)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # numpy's share; torch allocates the values and a few more arrays of positions
        assert used < 40 * len(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"", "only 0 bytes"),
        (lambda d: b"PK\x03\x04" + d, "no safetensors header"),
        (lambda d: d[:-5], "truncated or changed"),
        (lambda d: d + b"12345", "truncated or changed"),
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "checksum does not match"),
        (lambda d: d.replace(b'"U8"', b'"I8"'), "truncated or changed"),
        (lambda d: d.replace(b'"graftwork.delta"', b'"graftwork.dolta"'), "not a graftwork delta"),
        (
            lambda d: outer({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
            "foreign|not a",
        ),
        (lambda d: outer({"__metadata__": OUTER}), "truncated or changed"),
        (lambda d: outer({"__metadata__": {"format": "pt"}}), "not a graftwork delta"),
        (lambda d: outer([1]), "no safetensors header"),
        (lambda d: outer({"a" * 5000: 1}), "its header is too long"),
        (lambda d: wrap(b"1234567"), "preamble is not complete"),
        (lambda d: wrap(struct.pack("<II", 9999, 9999)), "longer than the file"),
        (lambda d: wrap(struct.pack("<II", 2, 2) + b"{}" + b"000000"), "gap after the table"),
    ],
)
def test_messages_name_what_is_wrong(change, message):
    with pytest.raises(DeltaFileError, match=message):
        deltas.loads(change(DATA))


def outer(header):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text
