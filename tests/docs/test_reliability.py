"""Promise of docs/RELIABILITY.md: every test that it names exists."""

import ast
import re

from small_modernbert.runs.references import ROOT

NAMED = re.compile(r"\b(test_\w+\.py)::(test_\w+)")


def test_every_named_test_exists() -> None:
    """Each `file::test` is a function of a file in tests/ or tests/faults/."""
    text = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    named = NAMED.findall(text)
    assert len(named) > 30
    defined: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        defined[path.name] = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    missing = [f"{file}::{name}" for file, name in named if name not in defined.get(file, ())]
    assert not missing


def test_every_promise_names_a_test() -> None:
    """No row of the tables of promises stands without the test that holds it."""
    text = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    for table in re.findall(r"^\| promise \| test \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            assert NAMED.search(row.split("|")[2]), row
