"""The house budgets that no linter holds: lines of files and functions, public imports only.

* a file of the package: 400 lines usual, 600 hard;
* a function: 40 lines usual, 80 hard, its docstring not counted;
* `claims/` and `domains/` import no private name of another room, so each doubles as an example.

Over a hard bound fails; between usual and hard is listed with `--all`. Run: `make budgets`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "graftwork"
FILE_USUAL, FILE_HARD = 400, 600
FUNCTION_USUAL, FUNCTION_HARD = 40, 80
PUBLIC_ONLY = ("claims", "domains")

Finding = tuple[bool, str]
"""Whether the hard bound is broken, and the line to print."""


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function from its `def` to its end, without the docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def private_imports(tree: ast.Module, room: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each private import from another room of the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            other_room = parts[0] == "graftwork" and parts[1:2] != [room]
            if other_room and any(p.startswith("_") and not p.startswith("__") for p in parts):
                yield node.lineno, name


def check(path: Path) -> Iterator[Finding]:
    """Yield what is over a bound in one file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path))
    room = path.relative_to(PACKAGE).parts[0]
    where = path.relative_to(PACKAGE.parent.parent)
    lines = len(text.splitlines())
    if lines > FILE_USUAL:
        yield lines > FILE_HARD, f"{where}: {lines} lines (usual {FILE_USUAL}, hard {FILE_HARD})"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = body_lines(node)
            if lines > FUNCTION_USUAL:
                bounds = f"usual {FUNCTION_USUAL}, hard {FUNCTION_HARD}"
                message = f"{where}:{node.lineno}: {node.name} has {lines} lines ({bounds})"
                yield lines > FUNCTION_HARD, message
    if room in PUBLIC_ONLY:
        for line, name in private_imports(tree, room):
            yield True, f"{where}:{line}: imports {name}; {room} uses public names only"


def main() -> int:
    """Check every file of the package and return the exit code."""
    findings = [finding for path in sorted(PACKAGE.rglob("*.py")) for finding in check(path)]
    broken = [message for hard, message in findings if hard]
    usual = [message for hard, message in findings if not hard]
    for message in broken + (usual if "--all" in sys.argv[1:] else []):
        print(message)
    print(f"budgets: {len(broken)} over a hard bound, {len(usual)} over the usual one")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
