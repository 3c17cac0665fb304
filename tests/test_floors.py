"""The house stands: imports run down the floors, in no circle, and closed doors stay closed."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "errors": 0, "net": 0, "disk": 1, "settings": 1, "api": 2,
    "template": 3, "reply": 3, "modelfile": 3, "store": 3, "sprout": 3, "runtime": 1,
    "families": 4, "engine": 4, "runner": 5, "service": 6, "server": 7, "client": 7,
    "ollama_nb_ext": 8, "cli": 8, "notebook": 8,
}  # fmt: skip
SIBLINGS = {"template", "reply", "modelfile", "store"}
LAZY_DOORS = {"ollama_nb/__init__.py", "ollama_nb/cli/main.py", "ollama_nb/notebook/magics.py"}
ONLY_IN = {
    "llama_cpp": {"ollama_nb/engine/llama/"},
    "tornado": {"ollama_nb/server/", "server_ext/"},
    "jupyter_server": {"server_ext/"},
    "jinja2": {"ollama_nb/template/jinja.py"},
    "gguf": {"ollama_nb/store/convert/"},
}
CLOSED = {"engine", "runner", "service", "store", "server"}
OWN_STORE_DOORS = ("ollama_nb/cli/serve.py", "ollama_nb/cli/local/")
FILES = sorted(p for folder in ("ollama_nb", "server_ext") for p in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "server_ext" if "server_ext" in path.parts else ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(tree: ast.AST, *, top_only: bool) -> set[str]:
    found: set[str] = set()
    todo = list(ast.iter_child_nodes(tree))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
        if not (top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "ollama_nb_ext" else (parts[1] if len(parts) > 1 else "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text("utf-8"))
    here = room(module_of(path))
    for target in imports(tree, top_only=False):
        for package, doors in ONLY_IN.items():
            if target.split(".")[0] == package:
                assert any(name.startswith(door) for door in doors), f"{name} imports {target}"
        there = room(target)
        if not target.startswith(("ollama_nb.", "ollama_nb_ext")) or not here or here == there:
            continue
        assert FLOORS[there] < FLOORS[here], f"{name} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})"
        assert not (here in SIBLINGS and there in SIBLINGS), f"{name}: siblings do not know each other"
        if here in {"cli", "notebook"} and there in CLOSED:
            assert name.startswith(OWN_STORE_DOORS), f"{name} opens the closed door of {there}"
    if name not in LAZY_DOORS:
        inner = imports(tree, top_only=False) - imports(tree, top_only=True)
        assert not {t for t in inner if t.startswith("ollama_nb")}, f"{name}: function-local imports {inner}"


def test_no_circles() -> None:
    graph = {
        module: imports(ast.parse(path.read_text("utf-8")), top_only=True) & MODULES.keys() - {module}
        for module, path in MODULES.items()
    }
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError
