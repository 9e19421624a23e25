"""Files of every format version are read for ever."""

import json
import zlib

import pytest
from tests.deltas.strategies import same_delta
from tests.golden.make import CONTENT, FILE, content, golden

from graftwork import deltas


def test_version_1_is_read_as_it_was_written():
    delta = deltas.load(FILE)
    assert content(delta) == json.loads(CONTENT.read_text())
    assert same_delta(delta, golden())


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="zlib-ng packs in another way")
def test_version_1_is_written_with_the_same_bytes():
    assert FILE.stat().st_size < 4096
    assert deltas.dumps(deltas.load(FILE)) == FILE.read_bytes()
    assert deltas.dumps(golden()) == FILE.read_bytes()


def test_it_covers_every_term_support_type_and_port_kind():
    report = deltas.inspect(FILE)
    tensors = report.tensors
    assert {term for t in tensors for term in t.terms} == {"sparse", "low_rank", "dense", "scale"}
    assert {t.support for t in tensors} == {"rice", "runs", "seeded", "all", ""}
    assert {kind for t in tensors for kind in t.stored} == set(deltas.STORED)
    assert {port.kind for port in report.ports} == {"head", "prompt", "bottleneck", "input"}
