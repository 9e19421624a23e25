"""Write docs/which-method.md from what `graftwork compare` gave on three tasks.

for task in comparisons sst2 sciie; do          # each stops and goes on by --resume
    graftwork compare studies/choosing/$task.yaml ... --out runs/choosing/$task
done                                            # the whole commands stand on the page
python studies/choosing_page.py --collect       # copy results and charts from runs/choosing
python studies/choosing_page.py                 # the page anew
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "studies" / "results" / "choosing", ROOT / "docs"
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """One task of the page.

    Attributes:
        name: of its YAML and results.
        title: for people.
        methods: beside the random mask.
        budget: bytes.
        what: what kind of task it is.
    """

    name: str
    title: str
    methods: str
    budget: int
    what: str


SEVEN = "head full bitfit gradient_mask diff_pruning lora"
TASKS = (
    Compared(
        "comparisons",
        "Word order: `comparisons`",
        f"{SEVEN} bottlenecks",
        140_000,
        """Whether one sentence follows from another, where word order, *more* / *less* and *not*
decide: far from what a sentence encoder knows. 300 updates of 16 rows.""",
    ),
    Compared(
        "sst2",
        "Sentiment: SST-2",
        f"{SEVEN} bottlenecks",
        100_000,
        """Phrases of film reviews, good or bad: the base nearly knows it. 200 updates of 16
rows.""",
    ),
    Compared(
        "sciie",
        "Relations in abstracts: SciERC",
        SEVEN,
        100_000,
        """Which of seven relations holds between two marked words of a sentence. 200 updates of 8
rows.""",
    ),
)

FOUND = {
    "comparisons": """**What it says.** So few updates are a lottery here: a seed that has not
left the plateau (*swapped nouns mean that it follows*, 72 to 76 %) when they are over sinks the
mean. That is two seeds of three of LoRA and of the bottlenecks, one of full tuning and of diff
pruning, none of the gradient mask, BitFit and the random mask. The gradient mask has 99 % on
two seeds; it is 2.3 points ahead of the random mask, seed by seed, with an error of 0.8. LoRA
gets no more than rank 1 out of these bytes, as it spends them on all matrices.
""",
    "sst2": """**What it says.** LoRA of rank 1 (85.6), the random mask (85.0) and the gradient
mask (84.8) cannot be told apart, and have what full tuning has (85.7). BitFit and the
bottlenecks are 1 to 2 points lower, in two thirds of the bytes. Diff pruning has what the head
alone has: its gates get 70 % of the updates, and 200 are too few for both of its stages.
""",
    "sciie": """**What it says.** Little but that the budget is too small: 1,600 rows were seen,
half of all answers are one class, and seeds of one method differ by as much as methods do.
LoRA, rank 1 (59.7) and the random mask (59.2) are ahead of the head alone (56.9) by less than
two errors; full tuning (61.3) is 2 points ahead of the mask, seed by seed, with an error of
0.7. Give such a task more updates before comparing.
""",
}
"""Written after the results were seen."""

HEAD = """# Which method?

`graftwork compare` measured this page: every method gets the same bytes (head and header included),
the same updates, and the same search of {trials} rates on validation rows; the best one then runs
on seeds {seeds}, and only that is measured on held-out rows. A seeded random mask always takes
part. The base is MiniLM, the targets are all tensors of its encoder layers, dropout is off. `head`
and `full` are references and may be larger than the budget. Memory is what a training step needs
beside the base. Bytes of a method's file are the largest of its seeds. Times are of one thread on a
machine that did other work, and hold to some tens of percent.

{advice}
"""

ADVICE = """**What the three tasks say together**, on budgets of minutes and about 100 kB:

- **Start with the random mask.** Within the budget nothing beats it beyond a 95 % interval (4.3
  errors, with three seeds in pairs). It stores no positions, so it keeps the most values of all
  masks.
- **A learnt mask pays where the task is far from the base**: the gradient mask is 2.3 points ahead
  on `comparisons`, with an error of 0.8, and not on the other two. The [study](study.md) says the
  same with tuned densities.
- **LoRA of rank 1 is level with masks** near the base, and slower to leave the plateau on
  `comparisons`. With bytes for a rank above 1, or fewer targets, see the [claim](claims.md#lora).
- **BitFit is the smallest that does something**: within 2.2 points of the random mask everywhere.
- **Diff pruning needs more updates than it got here** (the [demo](quickstart.md) gives it 600): its
  first stage alone takes 70 % of them. On such budgets take a one-shot mask.
- **Differences below 2 points are noise** with three seeds. Where the best rate was the last one
  tried, the method may do better than shown.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", action="store_true", help="take results from runs/choosing")
    if parser.parse_args().collect:
        collect(ROOT / "runs" / "choosing")
    (DOCS / "which-method.md").write_text(page(), encoding="utf-8")


def collect(runs: Path) -> None:
    """Copy the results and charts of finished comparisons."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        tree = json.loads((runs / task.name / "comparison.json").read_text(encoding="utf-8"))
        for key in ("folder", "chart", "seconds"):
            del tree[key]
        (RESULTS / f"{task.name}.json").write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
        shutil.copy(runs / task.name / "comparison.svg", DOCS / f"which-method-{task.name}.svg")


def page() -> str:
    """Return the page."""
    results = {task.name: _result(task.name) for task in TASKS}
    first = results[TASKS[0].name]
    head = HEAD.format(
        trials=first["trials"], seeds=", ".join(map(str, first["seeds"])), advice=ADVICE
    )
    parts = [head, summary([(task, results[task.name]) for task in TASKS])]
    parts += [section(task, results[task.name]) for task in TASKS]
    return "\n".join(parts).rstrip() + "\n"


def _result(name: str) -> Result:
    found: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def summary(results: Sequence[tuple[Compared, Result]]) -> str:
    """Return a table of all tasks: what each method is ahead of the random mask, in points."""
    rows = ["## Ahead of the random mask", ""]
    rows += ["Points of accuracy, mean of seeds +- standard error of the difference.", ""]
    rows += ["| method | " + " | ".join(task.title for task, _ in results) + " |"]
    rows += ["|---" * (len(results) + 1) + "|"]
    methods = dict.fromkeys(e["method"] for _, result in results for e in result["results"])
    for method in methods:
        if method != "random_mask":
            cells = [_ahead(result, method) for _, result in results]
            rows.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _ahead(result: Result, method: str) -> str:
    found = {e["method"]: e for e in result["results"] if e["status"] != "left out"}
    if method not in found:
        return ""
    mine, other = found[method]["values"], found["random_mask"]["values"]
    pairs = [100 * (a - b) for a, b in zip(mine, other, strict=True)]
    mean = sum(pairs) / len(pairs)
    spread = (sum((p - mean) ** 2 for p in pairs) / (len(pairs) - 1) / len(pairs)) ** 0.5
    return f"{mean:+.1f} +- {spread:.1f}"


COLUMNS = (
    "method",
    "within the budget",
    "accuracy",
    "+-",
    "each seed",
    "bytes",
    "memory of a step",
    "time",
    "rate",
)


def section(task: Compared, result: Result) -> str:
    """Return the part of the page about one task."""
    rows = result["rows"]
    lines = [
        f"## {task.title}",
        "",
        task.what,
        f"{rows['train']:,} rows to learn from, {rows['validation']:,} to choose rates by,",
        f"{rows['test']:,} held out; {task.budget:,} bytes.",
        "",
        "```console",
        f"$ graftwork compare studies/choosing/{task.name}.yaml --budget-bytes {task.budget} \\",
        f"      --methods {task.methods} \\",
        f"      --seeds 0 1 2 --trials {result['trials']} --out runs/choosing/{task.name}",
        "```",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(e) for e in _sorted(result)),
        "",
        *(f"`{e['method']}`: {e['note']}." for e in _sorted(result) if e["status"] == "left out"),
        f"![accuracy against bytes, memory and time](which-method-{task.name}.svg)",
        "",
        FOUND[task.name],
        "",
    ]
    return "\n".join(lines)


def _sorted(result: Result) -> list[Mapping[str, Any]]:
    entries: list[Mapping[str, Any]] = list(result["results"])
    return sorted(entries, key=lambda e: -e.get("mean", -1.0))


def _row(entry: Mapping[str, Any]) -> str:
    if entry["status"] == "left out":
        return f"| `{entry['method']}` | does not fit | | | | | | | |"
    setting = entry["setting"] or ("reference" if entry["status"] == "reference" else "")
    ends = "best rate was the last tried" in entry["note"].replace("the ", "").replace(" one", "")
    cells = [
        f"`{entry['method']}`",
        setting,
        f"{100 * entry['mean']:.1f}",
        f"{100 * entry['deviation']:.1f}",
        ", ".join(f"{100 * v:.1f}" for v in entry["values"]),
        f"{entry['bytes']:,}",
        f"{entry['memory'] / 1e6:.0f} MB" if entry["memory"] >= 1e6 else "under 1 MB",
        f"{entry['seconds']:.0f} s",
        f"x {entry['factor']:.3g}{' (last tried)' if ends else ''}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
