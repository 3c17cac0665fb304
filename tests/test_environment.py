"""What the package and its tests need from their environment: declared dependencies, and signals."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
OWN = {"ollama_nb", "ollama_nb_ext"}


def imports(file: Path) -> Iterator[str]:
    """The top-level names of all packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_imported_package_is_declared() -> None:
    declared = {
        normal(re.match(r"[\w.-]+", entry)[0])  # type: ignore[index]
        for entry in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    }
    files = [*(ROOT / "ollama_nb").rglob("*.py"), *(ROOT / "server_ext").rglob("*.py")]
    found = {name for file in files for name in imports(file)} - OWN - sys.stdlib_module_names
    owners = packages_distributions()
    missing = {name for name in found if declared.isdisjoint(map(normal, owners.get(name, [name])))}
    assert missing <= OPTIONAL, f"add these to the dependencies in pyproject.toml: {sorted(missing)}"


OPTIONAL = {"pydantic"}
"""Packages that are used only if the user has them."""


def test_tests_can_interrupt_programs_when_their_parent_ignores_the_signal() -> None:
    """``nohup make test &`` starts Python with SIGINT ignored, which child processes would inherit."""
    code = (
        "import signal, subprocess, sys; sys.path.insert(0, 'tests'); before = signal.getsignal(signal.SIGINT)\n"
        "import conftest\n"
        "child = 'import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)'\n"
        "print(before == signal.SIG_IGN, flush=True); subprocess.run([sys.executable, '-c', child], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
