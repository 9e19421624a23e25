"""Make the golden file of format version 1: every term, support, stored type and port kind.

The file is made once and kept for ever: `python -m tests.golden.make` writes it only where it is
missing. Beside it stands its content in plain JSON, for readers in any language.
"""

import json
from pathlib import Path

import torch

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

FOLDER = Path(__file__).parent
FILE, CONTENT = FOLDER / "delta_v1.safetensors", FOLDER / "delta_v1.json"


def ramp(*shape):
    """Exact binary fractions from -1 to 1, so that no library version can change them."""
    numel = torch.Size(shape).numel()
    return ((torch.arange(numel) * 37 % 129 - 64).double() / 64).reshape(shape)


def store(kind, *shape):
    return deltas.quantise(ramp(*shape), kind)


def golden():
    """Return the delta that the golden file holds."""
    mask = SeededMask(2026, "layer.2.weight")
    drawn = deltas.seeded_positions(mask, 200, 11)
    most = deltas.seeded_positions(SeededMask(-1, "renamed"), 20, 15)
    scattered = torch.tensor([0, 1, 5, 99, 100, 4096, 59_999])
    updates = {
        "layer.0.weight": Update((200, 300), Sparse(scattered, store("float16", 7))),
        "layer.1.weight": Update((20, 30), Sparse(torch.arange(60, 150), store("int8", 90))),
        "layer.2.weight": Update((10, 20), Sparse(drawn, store("bfloat16", 11), mask)),
        "layer.3.weight": Update(
            (4, 5), Sparse(most, store("float32", 15), SeededMask(-1, "renamed"))
        ),
        "layer.4.weight": Update((2, 3), Sparse(torch.arange(6), store("float64", 6))),
        "layer.5.weight": Update(
            (4, 2, 3), low_rank=LowRank(store("float16", 4, 2), store("float32", 2, 6), 0.25)
        ),
        "layer.5.bias": Update((4,), dense=store("bfloat16", 4)),
        "layer.6.weight": Update(
            (2, 5),
            Sparse(torch.tensor([3]), store("float16", 1)),
            LowRank(store("int8", 2, 1), store("int8", 1, 5)),
            store("int8", 2, 5),
            store("float64", 2, 1),
        ),
        "norm.weight": Update((300,), dense=store("int8", 300)),
        "scalar": Update((), scale=store("float32")),
        "nothing": Update((5,), Sparse(torch.arange(0), store("float16", 0))),
    }
    prints = {
        name: TensorPrint(update.shape, "float32", f"{index:x}" * 16)
        for index, (name, update) in enumerate(updates.items())
    }
    prints["scalar"] = TensorPrint((), "bfloat16", "by hand")
    prints["tokens.weight"] = TensorPrint((11, 4), "float16", "00ff" * 4)
    return Delta(
        updates=updates,
        ports={
            "head": Port(
                "head",
                {"in_features": 4, "out_features": 2},
                {"0.weight": store("float16", 2, 4), "0.bias": store("int8", 2)},
            ),
            "prompt": Port("prompt", {"length": 2}, {"tokens": store("bfloat16", 2, 4)}),
            "layer.3.after": Port("bottleneck", {"size": 1}, {"down": store("float32", 1, 4)}),
            "pixels": Port(
                "input", {"bias": False}, {"weight": store("float64", 2), "n": torch.tensor(-7)}
            ),
        },
        signature={"kind": "classification", "labels": ["no", "yes", "peut-être \u2713"]},
        fingerprint=Fingerprint(prints, {"pooling": "mean", "max_length": "128"}, asserted=True),
        provenance={"method": "golden", "seed": 0, "metrics": {"accuracy": 0.1}, "note": None},
        extra={"later": [1, 2.5, True]},
    )


def content(delta):
    """Return a delta as plain JSON: numbers in full, tensors as lists of exact values."""
    return {
        "updates": {name: update_content(u) for name, u in sorted(delta.updates.items())},
        "ports": {
            name: {
                "kind": port.kind,
                "config": port.config,
                "tensors": {key: stored_content(t) for key, t in sorted(port.tensors.items())},
            }
            for name, port in sorted(delta.ports.items())
        },
        "signature": delta.signature,
        "fingerprint": {
            name: [list(p.shape), p.dtype, p.digest]
            for name, p in sorted(delta.fingerprint.tensors.items())
        },
        "processing": delta.fingerprint.processing,
        "asserted": delta.fingerprint.asserted,
        "provenance": delta.provenance,
        "extra": delta.extra,
        "content_hash": deltas.content_hash(delta),
    }


def update_content(update):
    out = {"shape": list(update.shape)}
    if update.sparse is not None:
        mask = update.sparse.mask
        out["sparse"] = {
            "positions": update.sparse.positions.tolist(),
            "values": stored_content(update.sparse.values),
            "mask": None if mask is None else [mask.seed, mask.key, mask.version],
        }
    if update.low_rank is not None:
        term = update.low_rank
        out["low_rank"] = [stored_content(term.left), stored_content(term.right), term.factor]
    for term in ("dense", "scale"):
        if getattr(update, term) is not None:
            out[term] = stored_content(getattr(update, term))
    return out


def stored_content(stored):
    if isinstance(stored, deltas.Int8Blocks):
        codes, scales = stored.codes.tolist(), stored.scales.tolist()
        return {"type": "int8", "shape": list(stored.shape), "codes": codes, "scales": scales}
    kind = str(stored.dtype).removeprefix("torch.")
    return {"type": kind, "shape": list(stored.shape), "values": stored.reshape(-1).tolist()}


def main():
    for path in (FILE, CONTENT):
        if path.exists():
            raise SystemExit(f"{path.name} exists; golden files are never made again")
    deltas.save(golden(), FILE)
    CONTENT.write_text(json.dumps(content(golden()), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
