"""The table in ops lists what there is, and nothing of it fails."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.seed.behaviours import BEHAVIOURS
from tests.seed.table import LOGS, TABLE, names_in


def test_every_behaviour_has_its_test() -> None:
    """A behaviour of the seed is forgotten, and nobody notices."""
    existing = {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }

    assert [name for name in BEHAVIOURS if name not in existing] == []
    assert len(BEHAVIOURS) == 45


def test_the_written_table_is_of_these_tests() -> None:
    """The table tells of a run that was long ago. Write it again: python -m tests.seed.table"""
    written = TABLE.read_text(encoding="utf-8")

    assert names_in(written) == list(BEHAVIOURS)
    assert re.findall(r"\| (failure|error|skipped) \|", written) == []
    assert written.count("passed") >= (len(BEHAVIOURS) - 1) * len(LOGS)
