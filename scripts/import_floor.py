"""The import floor: `import graftwork` loads nothing heavy beyond torch, and is quick.

Its names are imported at first use, so what is measured is the import and the use of every one.

Each measurement runs in a fresh interpreter that has already imported torch. The bar is 0.3 s
beyond torch; this check fails only on a forbidden module or above 1 s, so that a busy machine does
not fail it. Run: `make import-floor`.
"""

from __future__ import annotations

import json
import subprocess
import sys

FORBIDDEN = (
    "PIL",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "rich",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "tensorboard",
    "transformers",
    "tyro",
)
WANTED_SECONDS = 0.3
LIMIT_SECONDS = 1.0
REPEATS = 3

PROBE = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import graftwork
for name in graftwork.__all__:
    getattr(graftwork, name)
seconds = time.perf_counter() - start
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "loaded": sorted(loaded)}))
"""


def measure() -> tuple[float, set[str]]:
    """Return the seconds of `import graftwork` beyond torch and the top-level modules it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"import floor: `import graftwork` failed\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    return float(result["seconds"]), set(result["loaded"])


def main() -> int:
    """Measure, print one line and return the exit code."""
    runs = [measure() for _ in range(REPEATS)]
    seconds = min(seconds for seconds, _ in runs)
    heavy = sorted(set().union(*(loaded for _, loaded in runs)) & set(FORBIDDEN))
    print(
        f"import floor: import graftwork takes {seconds:.3f} s beyond torch "
        f"(best of {REPEATS}; wanted {WANTED_SECONDS} s, limit {LIMIT_SECONDS} s)"
    )
    if heavy:
        print(f"import floor: FAILED, it also loads {', '.join(heavy)}; import these where used")
    if seconds > LIMIT_SECONDS:
        print("import floor: FAILED, too slow; see `python -X importtime -c 'import graftwork'`")
    return int(bool(heavy) or seconds > LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
