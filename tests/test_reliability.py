"""``docs/RELIABILITY.md`` is complete: each fault, attack and gate has a row, and the tests that rows name exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "RELIABILITY.md").read_text("utf-8")
COUNTS = {"F": 45, "S": 31, "G": 18}  # faults, attacks, gates
TARGETS = {f"T{number}" for number in range(1, 21)}  # of fuzz and property tests: ids that only docstrings have
IDS = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
_FILES = re.compile(r"`(tests/[\w/]+?(?:\.py)?)`")
_DOCSTRING = re.compile(r"([A-Z]\d+(?:, ?[A-Z]\d+)*): ")


def rows(page: str) -> dict[str, str]:
    """The rows of the tables whose first cell is an id."""
    return {found[1]: found[0] for found in re.finditer(r"^\| ([FSG]\d+) \|.*$", page, re.MULTILINE)}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def test_every_fault_attack_and_gate_has_one_row() -> None:
    assert list(rows(PAGE)) == sorted(IDS, key=lambda each: ("GFS".index(each[0]), int(each[1:])))
    assert len(re.findall(r"^\| [FSG]\d+ \|", PAGE, re.MULTILINE)) == len(IDS), "a row is there twice"


@pytest.mark.parametrize("each", [each for each in IDS if each[0] in "FS"])
def test_a_row_names_tests_that_exist_or_says_why_there_are_none(each: str) -> None:
    row = rows(PAGE)[each]
    named = _NAMED.findall(row)
    assert named or "does not apply" in row, f"{each} names no test"
    for file, name in named:
        assert (ROOT / file).exists(), f"{each}: {file} does not exist"
        assert name in {test.name for test in functions(ROOT / file)}, f"{each}: {file} has no {name}"


@pytest.mark.parametrize("each", [each for each in IDS if each[0] == "G"])
def test_a_gate_has_a_dated_figure_or_is_marked(each: str) -> None:
    *_, figure, command, _ = [cell.strip() for cell in rows(PAGE)[each].split("|")]
    assert re.search(r"\(20\d\d-\d\d-\d\d\)", figure) or figure == "not measured", f"{each}: {figure} has no date"
    assert command
    assert all((ROOT / path).exists() for path in _FILES.findall(command)), f"{each}: {command}"


def test_ids_in_docstrings_are_those_of_the_page() -> None:
    unknown = [
        f"{path.relative_to(ROOT)}::{test.name}: {found[1]}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for test in functions(path)
        if (found := _DOCSTRING.match(ast.get_docstring(test) or ""))
        if not {each.strip() for each in found[1].split(",")} <= {*IDS, *TARGETS}
    ]
    assert unknown == [], "a docstring begins with an id that docs/RELIABILITY.md does not have"
