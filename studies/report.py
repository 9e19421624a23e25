"""The page of the study, written from its result lines and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

Line = Mapping[str, Any]

ENTRIES = 10_646_784
"""Weights of MiniLM's encoder layers."""
SHARES = (1e-4, 1e-3, 5e-3)
TASKS = {"sst2": "SST-2", "cola": "CoLA", "comparisons": "comparisons"}
PLANNED = len(TASKS) * (6 + 5 * 6)
"""Runs a seed: three rates of full and of head only; six runs of each of five masks."""
METRICS = {"accuracy": "Accuracy", "matthews": "Matthews correlation x 100"}
MASKS = {
    "structured": "structured diff pruning",
    "unstructured": "unstructured diff pruning",
    "gradient": "the gradient mask",
    "non-adaptive": "non-adaptive pruning",
    "random": "the random mask",
}

HEAD = """# Study: which mask wins where

`studies/minilm_tasks.py --report` writes this page from `studies/results/`: all numbers and
sentences about them are generated. The base is MiniLM (all-MiniLM-L6-v2), the targets are the
{entries:,} weights of its encoder layers. A sparse delta may change 0.01 %, 0.1 % or 0.5 % of them
({kept}). The head is trained in full beside them and is as small as learns: linear for SST-2 and
CoLA, 16 hidden units for `comparisons`.

**Search.** Every sparse method tries the same three rates of the kept values at 0.1 % (0.003, 0.01,
0.03). At the other densities it reuses its best one; at 0.01 % three times that is tried last. Full
fine-tuning tries 0.0001, 0.0003 and 0.001, head only 0.003, 0.01 and 0.03; the head beside other
methods has 0.01. Every method has the same number of updates, without dropout;
two-stage methods part theirs 60 to 40, gradient scores 20 to 80; dense first stages run at 0.0003.
Rates are chosen on the rows they are measured on, for all methods alike, so every number is a
little too high.

**Shared stages.** One gate stage (steered to 0.1 %), one full fine-tuning and one scoring a seed
are projected to all three densities; the projection of a gate stage shifts its gates to the wanted
density.
"""

ONE_SEED = """This is ONE seed ({seed}). With {rows:,} held-out rows an accuracy of 85 % has a
standard error of {one:.1f} points and a difference of two of {two:.1f}, before the noise of
training, which only other seeds would show. Smaller differences say nothing.
`--full --seeds 0 1 2` runs three seeds on the whole data where a GPU is at hand.
"""


def write(lines: Sequence[Line], page: Path) -> None:
    """Write the page from finished runs."""
    kept = ", ".join(f"{math.floor(s * ENTRIES):,}" for s in SHARES)
    parts = [HEAD.format(entries=ENTRIES, kept=f"{kept} values")]
    if not lines:
        parts.append("**No runs yet.** The study has not been run on this machine.\n")
    for plan in sorted({line["plan"] for line in lines}):
        chosen = _of(lines, plan=plan)
        parts.append(f"## {plan.capitalize()}\n")
        parts.append(_verdict(chosen))
        parts += [_section(task, chosen) for task in TASKS if _of(chosen, task=task)]
    page.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _of(lines: Iterable[Line], **wanted: Any) -> list[Line]:
    return [line for line in lines if all(line[k] == v for k, v in wanted.items())]


def _best(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Return (mean value over seeds, rate) of the best rate that all seeds have."""
    seeds = {line["seed"] for line in lines}
    means: dict[float, float] = {}
    for rate in {line["rate"] for line in lines}:
        found = _of(lines, rate=rate)
        if {line["seed"] for line in found} == seeds:
            means[rate] = fmean(line["value"] for line in found)
    if not means:
        return None
    rate = max(means, key=lambda r: means[r])
    return means[rate], rate


def _noise(lines: Sequence[Line], value: float) -> float:
    """Return two standard errors, in points, of the difference of two values near `value`."""
    line, seeds = lines[0], len({line["seed"] for line in lines})
    share = value / 100
    if line["metric"] == "accuracy":
        one = math.sqrt(max(share * (1 - share), 0.0) / line["dev_rows"])
    else:
        # of a correlation r: (1 - r^2) / sqrt(n)
        one = (1 - share**2) / math.sqrt(line["dev_rows"])
    return 200 * math.sqrt(2 / seeds) * one


def _cell(lines: Sequence[Line]) -> str:
    found = _best(lines)
    if found is None:
        return "not run"
    return f"{found[0]:.1f} ({found[1]:g}; {len(lines)})"


def _section(task: str, lines: Sequence[Line]) -> str:
    mine = _of(lines, task=task)
    one, seeds = mine[0], sorted({line["seed"] for line in mine})
    out = [
        f"### {TASKS[task]}",
        "",
        f"{METRICS[one['metric']]} on {one['dev_rows']:,} rows held out; {one['steps']} updates of",
        f"{one['batch_size']} rows; a head of {one['head_values']:,} values; seeds {seeds}.",
        "In brackets: the rate chosen; how many runs are behind the cell.",
        "",
        "| method | " + " | ".join(f"{100 * s:g} %" for s in SHARES) + " | dense |",
        "|---|" + "---|" * (len(SHARES) + 1),
    ]
    for method in MASKS:
        cells = [_cell(_of(mine, method=method, share=share)) for share in SHARES]
        out.append(f"| {method} | " + " | ".join(cells) + " | |")
    dense = ("full", "head only")
    out += [f"| {method} | | | | {_cell(_of(mine, method=method))} |" for method in dense]
    sentences = [_sentence(mine, share) for share in SHARES]
    return "\n".join([*out, "", *sentences, *_types(mine)]) + "\n"


def _types(mine: Sequence[Line]) -> list[str]:
    """Return accuracy by type of row, where rows have types; at 0.1 %, for the rate chosen."""
    types = sorted(
        {k.partition("/")[2] for k in mine[0].get("metrics", {}) if k.startswith("accuracy/")}
    )
    if not types:
        return []
    out = ["", f"By type of row, sparse methods at {100 * SHARES[1]:g} %:", ""]
    out += ["| method | " + " | ".join(types) + " |", "|---|" + "---|" * len(types)]
    for method in (*MASKS, "full", "head only"):
        runs = _of(mine, method=method, share=SHARES[1] if method in MASKS else None)
        best = _best(runs)
        if best is None:
            continue
        chosen = _of(runs, rate=best[1])
        means = [fmean(100 * line["metrics"][f"accuracy/{t}"] for line in chosen) for t in types]
        out.append(f"| {method} | " + " | ".join(f"{mean:.0f}" for mean in means) + " |")
    return out


def _sentence(mine: Sequence[Line], share: float) -> str:
    found = {method: _best(_of(mine, method=method, share=share)) for method in MASKS}
    values = {method: pair[0] for method, pair in found.items() if pair is not None}
    name = f"- At {100 * share:g} %:"
    if "random" not in values or len(values) < 2:
        return f"{name} not enough runs yet."
    learnt = max((m for m in values if m != "random"), key=lambda m: values[m])
    gap, noise = values[learnt] - values["random"], _noise(mine, values["random"])
    if gap > 0:
        text = f"{MASKS[learnt]} is best, {gap:.1f} points over the random mask"
    elif gap < 0:
        text = f"the random mask is best, {-gap:.1f} points over {MASKS[learnt]}"
    else:
        text = f"{MASKS[learnt]} and the random mask are level"
    size = "beyond" if abs(gap) > noise else "within"
    head = _best(_of(mine, method="head only"))
    floor = ""
    if head is not None and max(values.values()) <= head[0]:
        floor = f" Neither is better than head only ({head[0]:.1f})."
    missing = [method for method in MASKS if method not in values]
    rest = f" Not run yet: {', '.join(missing)}." if missing else ""
    return f"{name} {text}, {size} two standard errors ({noise:.1f}).{floor}{rest}"


def _verdict(lines: Sequence[Line]) -> str:
    ahead: dict[str, list[str]] = {"beyond": [], "within": [], "behind": []}
    for task, name in TASKS.items():
        mine = _of(lines, task=task)
        for share in SHARES:
            pair = [_best(_of(mine, method=m, share=share)) for m in ("structured", "random")]
            if pair[0] is None or pair[1] is None:
                continue
            gap, noise = pair[0][0] - pair[1][0], _noise(mine, pair[1][0])
            kind = "behind" if gap <= 0 else "within" if gap <= noise else "beyond"
            ahead[kind].append(f"{name} at {100 * share:g} % ({gap:+.1f})")
    shown = {kind: "; ".join(where) or "nowhere" for kind, where in ahead.items()}
    out = [
        "### Does a learnt mask beat a random one?",
        "",
        "Structured diff pruning against the seeded random mask, which stores no positions:",
        "",
        f"- ahead by more than two standard errors: {shown['beyond']};",
        f"- ahead, but within the noise: {shown['within']};",
        f"- level or behind: {shown['behind']}.",
        "",
    ]
    seeds, rows = {line["seed"] for line in lines}, min(line["dev_rows"] for line in lines)
    if len(seeds) == 1:
        one = 100 * math.sqrt(0.85 * 0.15 / rows)
        seed = next(iter(seeds))
        out.append(ONE_SEED.format(seed=seed, rows=rows, one=one, two=one * math.sqrt(2)))
    keys = ("task", "seed", "method", "share", "rate")
    done, planned = len({tuple(line[k] for k in keys) for line in lines}), PLANNED * len(seeds)
    state = "All" if done >= planned else f"UNFINISHED: {done} of"
    minutes = sum(line["seconds"] for line in lines) / 60
    out.append(
        f"{state} {planned} runs are there; they took {minutes:.0f} minutes beside their shared "
        "first stages, one thread each on CPU cores in other use."
    )
    return "\n".join(out) + "\n"
