"""Which behaviours of the seed hold on which log: a table, made by running the tests.

    python -m tests.seed.table          runs tests/seed and writes ops/SEED_PARITY.md

Owns the table. `test_table.py` holds the written one to the tests that exist.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tests.seed.behaviours import BEHAVIOURS

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = ROOT / "ops" / "SEED_PARITY.md"
NOT_RUN: Final = "-"
LOGS: Final = ("memory", "fakeredis", "redis")
_HEAD: Final = """# The seed's behaviours

Each behaviour of the test suite that asked for this project has a test of the same name in `tests/seed`, on three logs.
Where ours is better on purpose, its first sentence says how. Written by `python -m tests.seed.table` from a run.

| # | test | behaviour | memory | fakeredis | Redis |
|---|---|---|---|---|---|
"""


def states(report: Path) -> dict[str, dict[str, str]]:
    """Per test name and log: passed, failed, skipped, or not run, from a JUnit file."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for case in ElementTree.parse(report).iter("testcase"):
        name, _, parameters = case.attrib["name"].partition("[")
        log = next((log for log in LOGS if log in parameters), "memory")
        outcome = next((kind.tag for kind in case if kind.tag in {"failure", "error", "skipped"}), "passed")
        if found[name].get(log, "passed") == "passed":  # the worst of several servers counts
            found[name][log] = outcome
    return found


def table(found: dict[str, dict[str, str]]) -> str:
    """The document."""
    rows = [
        f"| {number} | `{name}` | {behaviour} | "
        + " | ".join(found.get(name, {}).get(log, NOT_RUN) for log in LOGS)
        + " |"
        for number, (name, behaviour) in enumerate(BEHAVIOURS.items(), 1)
    ]
    return _HEAD + "\n".join(rows) + "\n"


def names_in(document: str) -> list[str]:
    """The tests a written table lists."""
    return re.findall(r"^\| \d+ \| `(\w+)` \|", document, re.MULTILINE)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "tests/seed",
            "--ignore=tests/seed/test_table.py",
            f"--junitxml={report}",
        ]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        TABLE.write_text(table(states(report)), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
