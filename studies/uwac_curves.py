"""Target Q, weights and MMD of the claim `uwac` over its updates, as numbers and as a drawing.

    python studies/uwac_curves.py run --seeds 0 1 2 --data DIR   # some minutes a seed on two cores
    python studies/uwac_curves.py plot                           # docs/uwac-curves.svg from them

A method of a seed that the file of results holds already is left alone: a stopped study goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from graftwork.claims import Scale, uwac
from graftwork.domains.control import read_log

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "uwac_curves.json"
DRAWING = HERE.parent / "docs" / "uwac-curves.svg"
SCALE: Scale = "quick"


def measure(name: str, seed: int, data: Path | None) -> dict[str, Any]:
    """Return curve, final figures and seconds of a method for one seed."""
    sizes = uwac.SCALES[SCALE]
    log = read_log(uwac.DOOR.find(data))
    began = time.perf_counter()
    step, history = uwac.learn(uwac.methods(sizes)[name], sizes, log, seed)
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "final": uwac.final(history) | uwac.told_apart(step, log, sizes.rows, seed),
        "curve": uwac.curve(history),
    }


def stored() -> dict[str, Any]:
    """Return what has been measured, by seed and method."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def plot(results: dict[str, Any]) -> None:
    """Draw the median over seeds and their range, of target Q, weight and MMD.

    Args:
        results: of seeds that have every method.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "uwac", "font.size": 9}
    from statistics import median

    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    shown = {"target_q": "mean target Q", "weight": "mean weight", "mmd": "MMD before the tanh"}
    for axis, (key, label) in zip(axes, shown.items(), strict=True):
        for name in next(iter(results.values())):
            curves = [seed[name]["curve"] for seed in results.values()]
            steps = [point["step"] for point in curves[0]]
            rows = list(zip(*([p[key] for p in c] for c in curves), strict=True))
            (line,) = axis.plot(steps, [median(row) for row in rows], label=name, linewidth=1.4)
            low, high = ([pick(row) for row in rows] for pick in (min, max))
            axis.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axis.set_xlabel("updates")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].set_yscale("log")
    axes[0].axhline(2000, color="0.5", linestyle=":", linewidth=1)
    axes[0].annotate("most that rewards allow", (0, 2200), color="0.4", fontsize=8)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(DRAWING, metadata={"Date": None, "Creator": None})
    print(DRAWING)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("run", "plot"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path)
    words = parser.parse_args()
    names = list(uwac.methods(uwac.SCALES[SCALE]))
    if words.what == "plot":
        plot({seed: found for seed, found in stored().items() if found.keys() == set(names)})
        return
    for seed, name in itertools.product(words.seeds, names):
        if name not in stored().get(str(seed), {}):
            found = measure(name, seed, words.data)
            results = stored()  # anew: another seed may be measured beside this one
            results.setdefault(str(seed), {})[name] = found
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(seed, name, found["seconds"], found["final"], flush=True)


if __name__ == "__main__":
    main()
