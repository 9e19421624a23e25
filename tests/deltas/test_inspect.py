import json
import math

import pytest
import torch
from hypothesis import given, settings
from tests.deltas.strategies import whole_deltas

from graftwork import deltas
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


@settings(max_examples=50)
@given(whole_deltas())
def test_parts_add_up_to_the_file(delta):
    report = deltas.inspect(delta)
    assert report.bytes == len(deltas.dumps(delta)) == sum(report.parts.values())
    assert min(report.parts.values()) >= 0
    assert (
        sum(t.bytes for t in report.tensors) == report.parts["positions"] + report.parts["values"]
    )
    assert sum(p.bytes for p in report.ports) == report.parts["ports"]
    assert sum(layer.bytes for layer in report.layers) == sum(t.bytes for t in report.tensors)
    json.dumps(report.to_json(), allow_nan=False)


def sample():
    torch.manual_seed(0)
    positions = torch.randperm(10_000)[:100].sort().values
    mask = SeededMask(0, "encoder.layer.10.weight")
    drawn = deltas.seeded_positions(mask, 10_000, 50)
    half = torch.float16
    seeded = Sparse(drawn, torch.ones(50, dtype=half), mask)
    chosen = Sparse(positions, torch.ones(100, dtype=half))
    updates = {
        "encoder.layer.10.weight": Update((100, 100), seeded),
        "encoder.layer.2.weight": Update((100, 100), chosen),
        "encoder.layer.2.bias": Update((100,), dense=torch.ones(100, dtype=half)),
        "embeddings.norm.weight": Update((30,), scale=torch.ones(1)),
        "pooler": Update((4, 5), low_rank=LowRank(torch.ones(4, 2), torch.ones(2, 5))),
    }
    return Delta(
        updates,
        {"head": Port("head", {}, {"w": torch.ones(3, dtype=half), "n": torch.tensor(1)})},
        {"kind": "classification"},
        Fingerprint({"pooler": TensorPrint((4, 5), "float32", "0" * 16)}, asserted=True),
    )


def test_ledger_of_a_delta_of_all_terms():
    report = deltas.inspect(sample())
    by_name = {t.name: t for t in report.tensors}
    assert [t.name for t in report.tensors] == [
        "embeddings.norm.weight",
        "encoder.layer.2.bias",
        "encoder.layer.2.weight",
        "encoder.layer.10.weight",
        "pooler",
    ]
    sparse = by_name["encoder.layer.2.weight"]
    assert (sparse.kept, sparse.changed, sparse.share, sparse.support) == (100, 100, 0.01, "rice")
    assert sparse.bound_bits == pytest.approx(math.log2(math.comb(10_000, 100)) / 100)
    assert sparse.bound_bits <= sparse.position_bits <= sparse.bound_bits * 1.05
    assert sparse.bytes == 200 + sparse.position_bytes
    seeded = by_name["encoder.layer.10.weight"]
    assert (seeded.support, seeded.position_bytes, seeded.bytes) == ("seeded", 4, 104)
    assert by_name["pooler"].changed == 20
    assert by_name["pooler"].kept == 18
    assert by_name["embeddings.norm.weight"].share == 1.0
    assert by_name["embeddings.norm.weight"].position_bits is None
    layer = next(layer for layer in report.layers if layer.layer == "encoder.layer.2")
    assert (layer.tensors, layer.entries, layer.changed) == (2, 10_100, 200)
    assert [layer.layer for layer in report.layers] == [
        "embeddings",
        "encoder.layer.2",
        "encoder.layer.10",
        "pooler",
    ]
    assert report.parts["fingerprint"] == 8
    (port,) = report.ports
    assert (port.name, port.values, port.bytes, port.stored) == (
        "head",
        4,
        14,
        ("float16", "int64"),
    )
    assert report.kept == 50 + 100 + 100 + 1 + 18
    assert report.asserted


def test_a_file_is_inspected_by_its_path(tmp_path):
    path = tmp_path / "a.safetensors"
    size = deltas.save(sample(), path)
    report = deltas.inspect(path)
    assert report == deltas.inspect(sample())
    assert report.bytes == size
    assert report.content == deltas.content_hash(sample())


def test_a_delta_without_updates():
    report = deltas.inspect(Delta({}))
    assert (report.kept, report.bytes_per_value, report.position_bits) == (0, None, None)
    assert report.parts["header"] == report.bytes


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("h.11.attn.c_attn.weight", "h.11"),
        ("blocks.3.experts.7.up", "blocks.3"),
        ("0.weight", "0"),
        ("embeddings.word_embeddings.weight", "embeddings"),
        ("conv1.weight", "conv1"),
        ("bias", "bias"),
    ],
)
def test_layer_of(name, layer):
    assert deltas.layer_of(name) == layer
