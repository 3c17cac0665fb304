"""Pages agree with the tree: every path and command that they name exists, and docs/api.md is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_floors import GRAPH, package, reachable

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PLACES = (ROOT, ROOT / "ollama_nb", ROOT / "server_ext" / "ollama_nb_ext", ROOT / "tests", ROOT / "docs")
EXAMPLES = re.compile(r"NAME|NNNN|FAMILY|VERB")
"""Placeholders in paths of files that a reader creates."""

CODE_PATH = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|js|css|toml|json|yaml|ipynb)|(?:[\w.-]+/)+)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")


def named_paths(text: str) -> set[str]:
    """Files and folders in backticks: with a known ending, or with a slash at the end."""
    return {path for path in CODE_PATH.findall(text) if not EXAMPLES.search(path)}


def exists(path: str) -> bool:
    return any((place / path).exists() for place in PLACES)


@pytest.mark.parametrize("page", ["docs/ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_paths_exist(page: str) -> None:
    missing = {path for path in named_paths((ROOT / page).read_text("utf-8")) if not exists(path)}
    assert missing == set(), f"{page} names paths that do not exist"


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(f"docs/decisions/{p.name}" for p in ROOT.glob("docs/decisions/*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    dead = {link for link in LINK.findall((ROOT / page).read_text("utf-8")) if not (here / link).exists()}
    assert dead == set()


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    pages = sorted(path.name for path in folder.glob("0*.md"))
    assert [name for name in pages if f"]({name})" not in index] == []
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text("utf-8")))
        assert named <= targets, page


def test_the_api_page_is_up_to_date() -> None:
    command = [sys.executable, "docs/generate_api.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_of_test_doubles_lists_every_module() -> None:
    folder = ROOT / "tests" / "support"
    listed = set(re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text("utf-8")))
    assert {path.name for path in folder.glob("*.py")} <= listed


def test_a_missing_path_is_found() -> None:
    text = "`engine/engine.py`, `engine/gone.py`, `engine/`, `gone/`, `families/FAMILY.py`, `a.b`, `x = 1`"
    assert {path for path in named_paths(text) if not exists(path)} == {"engine/gone.py", "gone/"}


def test_the_picture_of_the_layers_is_that_of_the_imports() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8").partition("```mermaid")[2].partition("```")[0]
    drawn = {(a, b) for a, b in re.findall(r"^  (\w+) --> (\w+)$", text, re.MULTILINE) if b != "base"}
    dotted = set(re.findall(r"^  (\w+) -\. .* \.-> (\w+)$", text, re.MULTILINE))
    values = {"", "api", "disk", "errors", "net", "redact", "runtime", "settings"}
    name = {"ollama_nb_ext": "ext"}
    pairs = {(package(module), package(target)) for module, targets in GRAPH.items() for target in targets}
    real = {(name.get(a, a), name.get(b, b)) for a, b in pairs if a != b and not {a, b} & values}
    assert drawn <= real, "arrows without an import"
    graph: dict[str, set[str]] = {}
    for a, b in drawn | dotted:
        graph.setdefault(a, set()).add(b)
    assert [(a, b) for a, b in sorted(real) if b not in reachable(graph, graph.get(a, ()))] == [], "imports not drawn"


def test_state_tables_are_those_of_the_modules() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    tables = re.findall(r"<!-- from (\S+) -->\n```text\n(.*?)```", text, re.DOTALL)
    assert len(tables) == 4
    for path, table in tables:
        docstring = (ROOT / "ollama_nb" / path).read_text("utf-8")
        lines = [line.strip() for line in docstring.splitlines()]
        assert [line for line in table.splitlines() if line.strip() not in lines] == [], path
