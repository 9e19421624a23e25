"""The law -> tests table of CONTRIBUTING names tests that exist, for every law."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = (ROOT / "CONTRIBUTING.md").read_text().split("## Law -> tests")[1].split("\n## ")[0]


def test_every_law_has_a_row_with_tests() -> None:
    rows = re.findall(r"^\| (\d+) .*$", TABLE, flags=re.MULTILINE)
    assert rows == [str(law) for law in range(1, 14)]
    for row in TABLE.splitlines():
        if re.match(r"\| \d", row):
            assert "`tests/" in row, row


def test_named_tests_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TABLE)
    assert len(named) > 30
    missing = [
        f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert missing == []


def test_every_protocol_can_be_checked_at_run_time() -> None:
    """`make test-typed` checks each annotation; a protocol that cannot be checked fails it all."""
    files = sorted((ROOT / "src").rglob("*.py"))
    found = [
        (path.relative_to(ROOT), before)
        for path in files
        for before in re.findall(r"^(.*)\nclass \w+\(Protocol", path.read_text(), re.MULTILINE)
    ]
    assert len(found) > 8
    assert [str(path) for path, before in found if before != "@runtime_checkable"] == []
