"""Draw the rank sweep of the claim `lora` from its published result, or from another folder's.

python studies/lora_ranks.py [--results runs/claims]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from graftwork.claims import load_result, lora, published_result

DRAWING = Path(__file__).parent.parent / "docs" / "lora-ranks.svg"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw accuracy against rank, a dot a seed and a line through the means, beside the rivals."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lora"
    from matplotlib import pyplot as plt

    values: dict[str, list[float]] = {}
    for row in result["rows"]:
        if row["metric"] == "accuracy" and row["method"] != "lora":
            values.setdefault(row["method"], []).append(row["value"])
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    ranks = sorted(int(name.removeprefix("rank ")) for name in values if name.startswith("rank "))
    for rank in ranks:
        several = values[f"rank {rank}"]
        axes.plot([rank] * len(several), several, "o", color="#2467ad", alpha=0.45, ms=5)
    means = [fmean(values[f"rank {rank}"]) for rank in ranks]
    axes.plot(ranks, means, color="#2467ad", label="LoRA")
    rivals = {name: fmean(v) for name, v in values.items() if not name.startswith("rank ")}
    for (name, mean), style in zip(rivals.items(), ("-", ":", "--", "-."), strict=True):
        axes.axhline(mean, color="#66707b", ls=style, lw=1, label=f"{name} ({mean:.1f})")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set(xlabel=f"rank (alpha {lora.ALPHA:g})", ylabel="accuracy, percent")
    axes.legend(frameon=False, fontsize=9, loc="center right")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--out", type=Path, default=DRAWING)
    words = parser.parse_args()
    given = words.results
    result = published_result("lora") if given is None else load_result(given, "lora")
    if result is None:
        raise SystemExit("there is no result of the claim yet: graftwork claims run lora")
    draw(result, words.out)
    print(words.out)


if __name__ == "__main__":
    main()
