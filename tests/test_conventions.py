"""Conventions that hold over the whole package: one public class per name, and no decisions by message text."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import check_language
import pytest

ROOT = Path(__file__).parent.parent

STRING_TESTS = {"startswith", "endswith", "find", "index", "count", "removeprefix", "removesuffix", "partition"}
REGEX_TESTS = {"match", "search", "fullmatch", "findall"}


def read_tree() -> dict[str, str]:
    files = (path for folder in ("ollama_nb", "server_ext") for path in sorted((ROOT / folder).rglob("*.py")))
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in files}


def duplicates(files: dict[str, str]) -> dict[str, set[str]]:
    """Public class names that are defined at the top of more than one file."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path, text in files.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def text_matches(text: str) -> list[int]:
    """Lines that decide something by the text of an error.

    A message is ``error.message``, ``str(error)``, ``error.args`` or ``body["error"]``, or a variable that one of
    these was assigned to in the same function; it may be lower-cased first. Comparing it with a text, testing its
    start or end, searching it for words or matching a pattern on it counts. Comparing two messages does not.
    """
    tree = ast.parse(text)
    return sorted({node.lineno for scope in _scopes(tree) for node in _matches_in(scope)})


def _scopes(tree: ast.Module) -> Iterator[ast.AST]:
    yield from (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module)
    )


def _matches_in(scope: ast.AST) -> Iterator[ast.expr]:
    caught = {node.name for node in ast.walk(scope) if isinstance(node, ast.ExceptHandler) and node.name}
    caught |= {"error", "exception", "problem"}
    named: set[str] = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and _is_message(node.value, caught, named):
            named |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(scope):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            messages = [side for side in sides if _is_message(side, caught, named)]
            if messages and any(_is_text(side) for side in sides if side not in messages):
                yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in STRING_TESTS and _is_message(node.func.value, caught, named):
                yield node
            if node.func.attr in REGEX_TESTS and any(_is_message(arg, caught, named) for arg in node.args):
                yield node


def _is_message(node: ast.expr, caught: set[str], named: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in named
    if isinstance(node, ast.Attribute):
        return node.attr in {"message", "args"} and isinstance(node.value, ast.Name) and node.value.id in caught
    if isinstance(node, ast.Subscript):
        whole = isinstance(node.slice, ast.Constant) and node.slice.value == "error"
        return whole or _is_message(node.value, caught, named)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in {"lower", "casefold", "strip"}:
            return _is_message(node.func.value, caught, named)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
            return isinstance(node.args[0], ast.Constant) and node.args[0].value == "error"
        is_str = isinstance(node.func, ast.Name) and node.func.id == "str" and len(node.args) == 1
        return is_str and isinstance(node.args[0], ast.Name) and node.args[0].id in caught
    return False


def _is_text(node: ast.expr) -> bool:
    """A text or a collection of texts, in place or by name; ``None`` and an empty text are not."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(node.value)
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(_is_text, node.elts))
    return isinstance(node, ast.JoinedStr | ast.Name)


FILES = read_tree()


def test_a_public_class_name_has_one_home() -> None:
    assert duplicates(FILES) == {}, "give one of them a more specific name"


def test_no_decision_depends_on_message_text() -> None:
    found = {path: lines for path, text in FILES.items() if (lines := text_matches(text))}
    assert found == {}, "catch a class of ollama_nb.errors, or compare its code"


def fixtures(files: dict[str, str]) -> dict[str, set[str]]:
    """The source of each fixture → the files that define it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and any(
                "fixture" in ast.unparse(mark) for mark in node.decorator_list
            ):
                found[ast.unparse(node)].add(path)
    return found


def test_a_fixture_has_one_home() -> None:
    tests = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py")}
    twice = [sorted(paths) for paths in fixtures(tests).values() if len(paths) > 1]
    assert twice == [], "move the fixture into a conftest.py that both files share"


# The checks themselves, on small bad examples.


def test_a_second_class_of_a_name_is_found() -> None:
    files = {"a.py": "class Step: ...", "b.py": "class Step: ...\nclass _Own: ...", "c.py": "class _Own: ..."}
    assert duplicates(files) == {"Step": {"a.py", "b.py"}}


def test_a_fixture_that_is_defined_twice_is_found() -> None:
    text = "@pytest.fixture\ndef server(): return 1\n"
    assert [len(paths) for paths in fixtures({"a.py": text, "b.py": text}).values()] == [2]


@pytest.mark.parametrize(
    "condition",
    [
        '"not found" in error.message',
        '"not found" not in error.message.lower()',
        'error.message == "not found"',
        'error.message.startswith("no ")',
        'str(error).endswith("found")',
        "any(words in error.message for words in TEXTS)",
        're.search("not .* found", error.message)',
        "PATTERN.match(str(error))",
        'error.args[0] == "x"',
        '"not found" in body["error"]',
        '"not found" in (line.get("error"))',
    ],
)
def test_matching_on_a_message_is_found(condition: str) -> None:
    text = f"try:\n    f()\nexcept OllamaError as error:\n    if {condition}:\n        pass\n"
    assert text_matches(text) == [4]


def test_a_message_in_a_variable_is_found() -> None:
    assert text_matches("def f(error):\n    text = str(error).lower()\n    return 'busy' in text\n") == [3]


@pytest.mark.parametrize(
    "condition",
    [
        'error.code == "model_not_found"',
        "error.message",
        "error.status == 404",
        '"x" in reply.message',
        "a.message == b",
    ],
)
def test_other_conditions_are_fine(condition: str) -> None:
    assert text_matches(f"def f(error):\n    if {condition}:\n        pass\n") == []


# Words and phrases: check_language.py.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "# there is none, so many of them\n"),
        ("a.py", '"""The client is told."""\n'),
        ("a.py", 'raise BadRequest("the answer is no JSON")\n'),
        ("a.py", "def what_was_said(): ...\n"),
        ("a.md", "The file lies in the store.\n"),
        ("a.js", "// a model says this\n"),
        ("a.ipynb", '{"cells": [{"cell_type": "markdown", "source": ["It goes on."]}]}'),
        ("tests/a.py", 'def f():\n    """Nobody waits in vain."""\n'),
    ],
)
def test_an_unwanted_phrase_is_found(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    assert list(check_language.check(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "x = y is None  # None if there is no longer a value\n"),
        ("a.py", 'raise NotFound(f"there is no column {name}")\n'),
        ("a.py", "class Store: ...\n\n\ndef resolve(): ...\n"),
        ("a.ipynb", '{"cells": [{"cell_type": "code", "source": ["print(\'I was told\')"]}]}'),
        ("tests/a.py", 'PROMPT = "Lily said hello."\n'),
    ],
)
def test_plain_text_and_code_are_fine(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    assert list(check_language.check(path)) == []
