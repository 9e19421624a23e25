"""Gathers the report of a finished run from what lies in its folder."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwork._errors import InputError
from graftwork.deltas import Inspection, inspect
from graftwork.training._files import write_text
from graftwork.training._folder import CONFIG, RunFolder
from graftwork.training._recorder import read_records
from graftwork.training._report import Report, TensorShare, percent, render, size

REPORT_FILE = "report.html"


def write_report(folder: str | Path, title: str | None = None) -> Path:
    """Write report.html into the folder of a finished run and return its path.

    Arguments:
        folder: of the run.
        title: of the page; None takes the folder's name.

    Raises:
        InputError: the run is not finished.
        StorageError: the disk is full; no half-written report remains.
    """
    run = RunFolder(Path(folder))
    result = run.result()
    if result is None:
        raise InputError(f"{run.path} holds no finished run, so there is nothing to report")
    name, outcome = title or run.path.resolve().name, run.path / result["outcome"]["file"]
    if outcome.suffix == ".safetensors":
        report = report_of(run, result, inspect(outcome), name)
    else:
        report = plain_report(run, result, name)
    path = run.path / REPORT_FILE
    write_text(path, render(report))
    return path


def report_of(run: RunFolder, result: Mapping[str, Any], ledger: Inspection, title: str) -> Report:
    """Return what the report of a run shows."""
    made = ledger.provenance
    base = (run.config() or {}).get("base", made.get("base"))
    return Report(
        title=title,
        facts=[(k, v) for k, v in _facts(made) if v],
        headline=_headline(result, ledger),
        history=read_records(run.metrics),
        groups=_groups(result["metrics"]),
        tensors=[
            TensorShare(t.name, math.prod(t.shape), t.changed, t.bytes) for t in ledger.tensors
        ],
        parts=[(part, count) for part, count in ledger.parts.items() if count],
        config=(run.path / CONFIG).read_text(encoding="utf-8"),
        provenance={
            "content": ledger.content,
            **{k: v for k, v in made.items() if k not in ("task", "train", "tuner", "metrics")},
            **({"unreached": result["unreached"]} if result.get("unreached") else {}),
            "threads": result.get("threads"),
        },
        commands=_commands(run.path, result["outcome"]["file"], _loading(run, str(base)), ledger),
    )


def plain_report(run: RunFolder, result: Mapping[str, Any], title: str) -> Report:
    """Return what the report of a run shows that yields no delta: curves, metrics, settings."""
    tiles = [(name, f"{value:.4g}", "") for name, value in result["metrics"].items()][:3]
    outcome = result["outcome"]
    tiles.append((outcome["file"], size(outcome["bytes"]), "on disk"))
    tiles.append(("training", _clock(result["seconds"]), f"{result['steps']:,} steps"))
    return Report(
        title=title,
        headline=tiles,
        history=read_records(run.metrics),
        groups=_groups(result["metrics"]),
        config=(run.path / CONFIG).read_text(encoding="utf-8"),
        provenance={"trained": result["trained"], "threads": result["threads"]},
    )


def _facts(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    tuner, task = made.get("tuner", {}), made.get("task", {})
    digest = str(made.get("data_digests", {}).get("train", ""))[:12]
    kept = f", {percent(tuner['share'])}" if isinstance(tuner.get("share"), float) else ""
    return [
        ("base", str(made.get("base", ""))),
        ("data", str(task.get("data") or f"sha256 {digest}")),
        ("tuner", f"{tuner.get('name', '')}{kept}"),
        ("seed", str(made.get("seed", ""))),
    ]


def _headline(result: Mapping[str, Any], ledger: Inspection) -> list[tuple[str, str, str]]:
    main = next((name for name in result["metrics"] if "/" not in name), None)
    tiles = [(main, f"{result['metrics'][main]:.4g}", "held-out rows")] if main else []
    changed = sum(layer.changed for layer in ledger.layers)
    entries = ledger.provenance.get("target_entries") or sum(t.entries for t in ledger.layers)
    if changed:
        detail = f"{changed:,} of {entries:,} target weights"
        tiles.append(("weights changed", percent(changed / entries), detail))
    else:
        tiles.append(("weights changed", "none", "what was learnt is in the head"))
    ports = sum(port.bytes for port in ledger.ports)
    tiles.append(("delta on disk", size(ledger.bytes), f"of these {size(ports)} in the head"))
    tiles.append(("training", _clock(result["seconds"]), f"{result['steps']:,} steps"))
    return tiles


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _groups(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        metric, _, group = name.partition("/")
        if group:
            groups.setdefault(group, {})[metric] = value
    return groups


def _example(field: str, form: str | None) -> Any:
    text = field.upper()
    return [{"role": "user", "content": text}] if form == "messages" else text


def _loading(run: RunFolder, base: str) -> str:
    """Return the arguments that load the base as the run had it."""
    options = (run.config() or {}).get("base_options") or {}
    held = options.get("quantise")
    return repr(base) if held is None else f"{base!r}, quantise={held!r}"


def _commands(folder: Path, file: str, loading: str, ledger: Inspection) -> list[tuple[str, str]]:
    fields = [str(name) for name in ledger.signature.get("fields", ())]
    texts = " ".join(f'"{name.upper()}"' for name in fields)
    language = ledger.signature.get("language") or {}
    record = json.dumps({name: _example(name, language.get("form")) for name in fields})
    place = shlex.quote(str(folder))
    load = "load_language_model" if language else "load_base"
    names = "load_delta, predict" if language else "load_base, load_delta, predict"
    also = "from graftwork.bases import load_language_model\n" if language else ""
    python = (
        f"from graftwork import {names}\n{also}\n"
        f"base = {load}({loading})\n"
        f"delta = load_delta({str(folder / file)!r})\n"
        f"predict(base, delta, [{record}])"
    )
    return [
        ("From a shell:", f"graftwork predict {place} --text {texts}"),
        ("On a file, with the same columns:", f"graftwork evaluate {place} --data rows.csv"),
        ("In Python:", python),
    ]
