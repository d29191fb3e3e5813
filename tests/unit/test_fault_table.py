"""Each row of the README's table of faults names the test that runs it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SECTION = "## When something breaks"


def rows() -> list[list[str]]:
    """Cells of the table's rows, without its head."""
    _, found, rest = (PROJECT / "README.md").read_text().partition(f"\n{SECTION}\n")
    assert found, f"the README has no section {SECTION!r}"
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_each_row_tells_all_and_names_a_test_that_exists() -> None:
    table = rows()
    assert len(table) >= 10
    for row in table:
        assert len(row) == 5, row
        assert all(row), row
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[-1])
        assert named, row
        for file, name in named:
            path = PROJECT / file
            assert path.is_file(), file
            tests = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
            assert name in tests, f"{file} has no {name}"
