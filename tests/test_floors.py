"""The layers: a module imports only from lower layers, never in a circle, and some packages only where they belong.

Every import counts: at the top of a module, inside a function, under ``TYPE_CHECKING``, and a string that names a
module of ours (for ``import_module``, say). A string that starts a process (``-m``) or names a logger does not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    "errors": 0, "disk": 1, "net": 1, "redact": 1, "runtime": 2, "settings": 3, "api": 3,
    "template": 4, "reply": 4, "modelfile": 4, "store": 4, "sprout": 4,
    "families": 5, "engine": 5, "runner": 6, "service": 7, "server": 8, "client": 8,
    "verbs": 9, "ollama_nb_ext": 10, "cli": 10, "notebook": 10,
}  # fmt: skip
"""Packages of the same layer do not import each other."""

ONLY_IN = {
    "llama_cpp": ("ollama_nb/engine/llama/",),
    "tornado": ("ollama_nb/server/", "server_ext/"),
    "jupyter_server": ("server_ext/",),
    "jinja2": ("ollama_nb/template/jinja.py",),
    "gguf": ("ollama_nb/store/convert/",),
}
"""Third-party packages, and the only files that import them."""

FRONT_ENDS = {"cli", "notebook"}
SERVER_SIDE = {"engine", "runner", "service", "store", "server"}
OWN_STORE = ("ollama_nb.cli.serve", "ollama_nb.cli.store", "ollama_nb.cli.keys", "ollama_nb.cli.doctor")
"""The modules of the front ends that start a server or work on this machine's own store."""

DIRECT_WRITES = {("ollama_nb.client.files", "ollama_nb.store.blobs")}
"""A client on the server's machine writes blobs into its store itself: docs/decisions/0008."""

LAZY = {"ollama_nb", "ollama_nb.cli.main", "ollama_nb.notebook.magics"}
"""Modules whose job is to import late. Elsewhere an import inside a function has a comment that says why."""


@dataclass(frozen=True)
class Import:
    target: str
    """A module, or a package's attribute where there is no such module."""
    line: int
    local: bool = False
    explained: bool = False
    """Whether a local import has a comment on its line or on the line above."""


@dataclass(frozen=True)
class Source:
    name: str
    path: str
    text: str


def read_tree() -> dict[str, Source]:
    found = {}
    for folder, base in (("ollama_nb", ROOT), ("server_ext", ROOT / "server_ext")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Source(name, str(path.relative_to(ROOT)), path.read_text("utf-8"))
    return found


def imports_of(source: Source, modules: Iterable[str]) -> list[Import]:
    """Every import of a module, strings included; a package's submodule is named in full."""
    dotted = {module for module in modules if "." in module}
    return list(_walk(ast.parse(source.text), source.text.splitlines(), dotted, local=False))


def _walk(node: ast.AST, lines: list[str], modules: set[str], *, local: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        names: Iterable[str] = ()
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and child.module:
            whole = [f"{child.module}.{alias.name}" for alias in child.names]
            names = [name if name in modules else child.module for name in whole]
        elif isinstance(child, ast.Constant) and isinstance(child.value, str) and child.value in modules:
            names = [child.value]
        if isinstance(child, ast.Import | ast.ImportFrom):
            explained = any("#" in line for line in lines[max(0, child.lineno - 2) : child.end_lineno])
        else:
            explained = True
        yield from (Import(name, getattr(child, "lineno", 0), local, explained) for name in dict.fromkeys(names))
        if not _starts_process_or_log(child):
            inside = local or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, lines, modules, local=inside)


def _starts_process_or_log(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).rpartition(".")[2] in {"getLogger", "module_command"}
    return isinstance(node, ast.List | ast.Tuple) and any(
        isinstance(item, ast.Constant) and item.value == "-m" for item in node.elts
    )


def dynamic_imports(source: Source) -> list[int]:
    """Lines with ``import_module`` of a name that starts with our package's."""
    calls = [node for node in ast.walk(ast.parse(source.text)) if isinstance(node, ast.Call) and node.args]
    return [
        call.lineno
        for call in calls
        if ast.unparse(call.func).rpartition(".")[2] in {"import_module", "__import__"}
        and "ollama_nb" in ast.unparse(call.args[0])
    ]


def package(module: str) -> str:
    """The name that ``LAYERS`` has a number for; empty for the root of the package."""
    parts = module.split(".")
    return parts[0] if parts[0] == "ollama_nb_ext" else (parts[1] if len(parts) > 1 else "")


def is_ours(target: str) -> bool:
    return target.split(".")[0] in {"ollama_nb", "ollama_nb_ext"}


def upward(importer: str, target: str) -> bool:
    """Whether an import goes to the same layer or a higher one."""
    here, there = package(importer), package(target)
    if not is_ours(target) or not here or not there or here == there:
        return False
    return LAYERS[there] >= LAYERS[here]


def reachable(graph: Mapping[str, set[str]], starts: Iterable[str]) -> set[str]:
    found: set[str] = set()
    todo = list(starts)
    while todo:
        if (module := todo.pop()) not in found:
            found.add(module)
            todo += graph.get(module, ())
    return found


def server_side_imports(graph: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """The imports by which a front end reaches the server's side, at whatever distance."""
    starts = [module for module in graph if package(module) in FRONT_ENDS and not module.startswith(OWN_STORE)]
    lower = {
        module: {target for target in targets if not target.startswith(OWN_STORE)} for module, targets in graph.items()
    }
    outside = {
        module: {target for target in targets if package(target) not in SERVER_SIDE}
        for module, targets in lower.items()
        if package(module)  # importing anything runs the root module; tests/cli/test_light.py keeps that light
    }
    return {
        (module, target)
        for module in reachable(outside, starts)
        for target in lower.get(module, ())
        if package(module) and package(target) in SERVER_SIDE
    }


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules that import each other, directly or not (strongly connected components)."""
    reach = {module: reachable(graph, graph[module]) for module in graph}
    return {
        frozenset(other for other in reach[module] if module in reach.get(other, ()))
        for module in graph
        if module in reach[module]
    }


MODULES = read_tree()
IMPORTS = {name: imports_of(source, MODULES) for name, source in MODULES.items()}
GRAPH = {
    name: {found.target for found in imports if found.target in MODULES} - {name} for name, imports in IMPORTS.items()
}


def test_every_package_has_a_layer() -> None:
    assert {package(name) for name in MODULES} - {""} <= LAYERS.keys(), "add new packages to LAYERS"


def test_imports_go_down() -> None:
    found = [
        f"{MODULES[name].path}:{other.line} imports {other.target}"
        for name, imports in IMPORTS.items()
        for other in imports
        if upward(name, other.target)
    ]
    assert found == [], "imports from the same layer or a higher one"


@pytest.mark.parametrize("name", ONLY_IN)
def test_third_party_packages_stay_where_they_belong(name: str) -> None:
    for module, imports in IMPORTS.items():
        for found in imports:
            if found.target.split(".")[0] == name:
                path = MODULES[module].path
                assert path.startswith(ONLY_IN[name]), f"{path}:{found.line} imports {found.target}"


def test_front_ends_reach_the_server_by_http_only() -> None:
    found = server_side_imports(GRAPH)
    assert found == DIRECT_WRITES, "the command line or the notebook reaches the server's side"


def test_local_imports_say_why() -> None:
    silent = [
        f"{MODULES[name].path}:{found.line} imports {found.target}"
        for name, imports in IMPORTS.items()
        for found in imports
        if is_ours(found.target) and found.local and not found.explained and name not in LAZY
    ]
    assert silent == [], "an import inside a function needs a comment that gives the reason"


def test_no_dynamic_imports_of_our_own() -> None:
    found = {name for name, source in MODULES.items() if dynamic_imports(source)}
    assert found == set(), "write a local import with a reason instead of import_module"


def test_no_circles() -> None:
    found = circles({name: targets - {"ollama_nb"} for name, targets in GRAPH.items()})
    assert [sorted(group) for group in found] == [], "modules that import each other"


# The checks themselves, on small bad examples.


def our(name: str) -> str:
    return f"ollama_nb.{name}"


def example(text: str) -> list[Import]:
    return imports_of(Source(our("engine.example"), "", text), map(our, ("server.app", "api", "api.names")))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("import ollama_nb.server.app", "ollama_nb.server.app"),
        ("from ollama_nb.server import app", "ollama_nb.server.app"),
        ("from ollama_nb.server.app import App", "ollama_nb.server.app"),
        ("if TYPE_CHECKING:\n    from ollama_nb.server.app import App", "ollama_nb.server.app"),
        ("def f():\n    from ollama_nb.server.app import App", "ollama_nb.server.app"),
        ("app = import_module('ollama_nb.server.app')", "ollama_nb.server.app"),
        ("HOMES = {'App': 'ollama_nb.server.app'}", "ollama_nb.server.app"),
    ],
)
def test_every_kind_of_import_is_found(text: str, target: str) -> None:
    (found,) = example(text)
    assert found.target == target
    assert upward(our("engine.example"), found.target)


@pytest.mark.parametrize(
    "text",
    [
        "command = [sys.executable, '-m', 'ollama_nb.server.app']",
        "log = logging.getLogger('ollama_nb.server.app')",
        "COMMAND = module_command('ollama_nb.server.app')",
        "import numpy",
    ],
)
def test_processes_and_loggers_are_not_imports(text: str) -> None:
    assert [found for found in example(text) if is_ours(found.target)] == []


def test_siblings_and_higher_layers_are_upward() -> None:
    assert upward(our("store.x"), our("template.y"))
    assert upward(our("client.x"), our("server.y"))
    assert not upward(our("server.x"), our("service.y"))
    assert not upward(our("store.x"), our("store.y"))


def test_a_front_end_reaches_the_store_through_the_client() -> None:
    graph = {
        our("cli.run"): {our("client.files")},
        our("client.files"): {our("store.blobs")},
        our("store.blobs"): {our("store.gguf")},
        our("cli.serve"): {our("server.app")},
    }
    assert server_side_imports(graph) == {(our("client.files"), our("store.blobs"))}


def test_a_circle_of_three_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert circles(graph) == {frozenset("abc")}


def test_a_local_import_without_a_reason_is_found() -> None:
    body = "from ollama_nb.api import names"
    assert not example(f"def f():\n    {body}")[0].explained
    assert example(f"def f():\n    {body}  # with numpy: slow")[0].explained
    assert example(f"def f():\n    # with numpy: slow\n    {body}")[0].explained


def test_a_dynamic_import_is_found() -> None:
    assert dynamic_imports(Source("", "", "x = import_module('ollama_nb.api.names')")) == [1]
    assert dynamic_imports(Source("", "", "x = importlib.import_module(f'ollama_nb.{name}')")) == [1]
    assert dynamic_imports(Source("", "", "x = import_module(f'{__name__}.{name}')")) == []
