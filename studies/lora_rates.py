"""Which rates the claim `lora` runs with: for each method the best of three.

    python studies/lora_rates.py --seeds 0 --data DIR    # a stopped search goes on
    python studies/lora_rates.py --show                  # prints means over the seeds

Accuracy is measured on the test rows of pilot seeds, which are never judged. The rates of head and
full fine-tuning are those of `studies/claim_rates.py`, searched alike on the same transfer.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from graftwork.claims import lora
from graftwork.claims._images import prepare

RESULTS = Path(__file__).parent / "results" / "lora_rates.jsonl"
TRIED = dict.fromkeys(("lora", "random", "bitfit"), (3e-3, 1e-2, 3e-2))
"""Field of `Rates` -> rates tried. (0.001 was tried too for the first two, and was their worst.)"""


def lines() -> Iterator[dict[str, Any]]:
    """Yield what was measured."""
    if RESULTS.is_file():
        yield from map(json.loads, RESULTS.read_text().splitlines())


def search(seed: int, data: Path | None) -> None:
    """Run what is missing of one pilot seed."""
    recipe = lora.SCALES["quick"]
    bench = lora.Bench(prepare(recipe.sizes, seed, data), recipe, lambda _: None)
    share = lora.formula(bench.shapes, lora.RANK) / sum(m * n for m, n in bench.shapes)
    known = {(line["seed"], line["method"], line["rate"]) for line in lines()}
    for method, tried in TRIED.items():
        for rate in tried:
            if (seed, method, rate) in known:
                continue
            rates, began = replace(recipe.rates, **{method: rate}), time.perf_counter()
            rivals = lora.tuners(rates, share)
            given = {
                "lora": (lora.lora(rates), lora.MATRICES),
                "random": rivals["random mask"],
                "bitfit": rivals["bitfit"],
            }[method]
            accuracy = bench.learn(method, *given)[2]
            line = {"seed": seed, "method": method, "rate": rate, "accuracy": accuracy}
            line["seconds"] = round(time.perf_counter() - began, 1)
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


def show() -> None:
    """Print the mean of every rate."""
    found: dict[tuple[str, float], list[float]] = {}
    for line in lines():
        found.setdefault((line["method"], line["rate"]), []).append(line["accuracy"])
    for (method, rate), values in sorted(found.items()):
        print(f"{method:8} {rate:<8g} {fmean(values):.2f} on {len(values)} seeds")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], choices=(0, 1, 2))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--show", action="store_true")
    words = parser.parse_args()
    if not words.show:
        for seed in words.seeds:
            search(seed, words.data)
    show()


if __name__ == "__main__":
    main()
