"""Model cards: what a delta is, by what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from graftwork.deltas import QUANTISE, Delta, inspect

CARD = "README.md"


def model_card(delta: Delta, base: str, *, merged: bool = False, name: str | None = None) -> str:
    """Return a model card in the form that the Hugging Face hub reads.

    Nothing is claimed that the delta does not hold: changed tensors and bytes are counted,
    metrics, data digest and seeds come from its provenance.

    Args:
        delta: any delta.
        base: what the base is loaded from, a hub id or a name.
        merged: whether the card is of a merged model, which needs no graftwork.
        name: the title; None makes one of the task.

    Example:
        >>> from graftwork.deltas import Update
        >>> import torch
        >>> card = model_card(Delta({"w": Update((2,), dense=torch.ones(2))}), "org/base")
        >>> card.splitlines()[1]
        'base_model: "org/base"'
    """
    title = name or _title(delta, base)
    parts = [
        _front(delta, base, merged),
        f"# {title}\n",
        _summary(delta, base, merged),
        _use(delta, base, merged),
        _task(delta.signature),
        _metrics(delta.provenance),
        _made(delta),
    ]
    return "\n".join(part for part in parts if part)


def _front(delta: Delta, base: str, merged: bool) -> str:
    tags = ["graftwork", *(["merged"] if merged else ["delta"]), *sorted(_terms(delta))]
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"library_name: {'transformers' if merged else 'graftwork'}",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---\n",
    ]
    return "\n".join(lines)


def _title(delta: Delta, base: str) -> str:
    kind = delta.signature.get("kind")
    return f"{kind} on {base}" if kind else f"A delta of {base}"


def _terms(delta: Delta) -> set[str]:
    return {term.replace("_", "-") for update in delta.updates.values() for term in update.terms}


def _summary(delta: Delta, base: str, merged: bool) -> str:
    report = inspect(delta)
    terms = ", ".join(sorted(_terms(delta))) or "no changed weights"
    ports = "".join(f", port `{name}` ({port.kind})" for name, port in delta.ports.items())
    form = "merged into its base" if merged else f"{report.bytes:,} bytes"
    return (
        f"A task's difference from `{base}`, {form}: {len(delta.updates)} parameters changed "
        f"({terms}){ports}.\n"
    )


def _use(delta: Delta, base: str, merged: bool) -> str:
    if merged:
        return "Load it with transformers as any model folder.\n"
    load = "load_language_model" if delta.signature.get("kind") == "text" else "load"
    held = delta.fingerprint.processing.get(QUANTISE)
    how = "" if held is None else f", {QUANTISE}={json.dumps(held)}"
    return (
        "```python\n"
        "from graftwork import bases, deltas\n\n"
        f"base = bases.{load}({json.dumps(base)}{how})\n"
        'model = deltas.view(base, deltas.load("delta.safetensors"))\n'
        "```\n\n"
        "The file carries a fingerprint of each tensor it changes; on another base it raises an "
        "error.\n"
    )


def _task(signature: Mapping[str, Any]) -> str:
    if not signature:
        return ""
    rows = [
        f"- {key}: {json.dumps(signature[key])}"
        for key in ("kind", "call", "fields", "labels", "pooling", "max_length", "template")
        if signature.get(key)
    ]
    return "## Task\n\n" + "\n".join(rows) + "\n"


def _metrics(provenance: Mapping[str, Any]) -> str:
    metrics = provenance.get("metrics")
    if not isinstance(metrics, Mapping):
        return ""
    rows = [f"| {k} | {v:.4g} |" for k, v in metrics.items() if isinstance(v, (int, float))]
    if not rows:
        return ""
    return "\n".join(["## Metrics\n", "| metric | value |", "|---|---|", *rows, ""])


def _made(delta: Delta) -> str:
    asserted = (
        "It was imported from a format without fingerprints: that it belongs to this base is "
        "asserted by the user who imported it.\n\n"
        if delta.fingerprint.asserted
        else ""
    )
    text = json.dumps(delta.provenance, indent=1, sort_keys=True)
    return f"## How it was made\n\n{asserted}```json\n{text}\n```\n"
