"""``.ollama`` is registered whichever of pandas and this package is imported first; neither imports the other."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAY = "print(sorted(n for n in sys.modules if n in {'pandas', 'IPython', 'ollama_nb.notebook.frame.accessor'}))"


def run(*lines: str) -> list[str]:
    code = "\n".join(["import sys", *lines])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_the_package_loads_nothing() -> None:
    assert run("import ollama_nb", SAY) == ["[]"]


def test_loading_the_extension_loads_no_pandas() -> None:
    lines = (
        "from IPython.core.interactiveshell import InteractiveShell",
        "shell = InteractiveShell.instance()",
        "shell.run_line_magic('load_ext', 'ollama_nb')",
        "print('pandas' in sys.modules)",
    )
    assert run(*lines) == ["False"]


@pytest.mark.parametrize("order", [("pandas", "ollama_nb"), ("ollama_nb", "pandas")])
def test_the_accessor_is_registered_in_any_import_order(order: tuple[str, str]) -> None:
    loads = [f"import {name}" for name in order]
    use = "print(type(pandas.Series(['a']).ollama).__name__, type(pandas.DataFrame({'a': [1]}).ollama).__name__)"
    assert run(*loads, SAY, use) == ["['pandas']", "Accessor Accessor"]


def test_the_import_hook_leaves_no_trace() -> None:
    lines = (
        "import ollama_nb",
        "before = list(sys.meta_path)",
        "import pandas, importlib.machinery",
        "print(len(before) - len(sys.meta_path))",
        "print(type(pandas.__spec__.loader) is importlib.machinery.SourceFileLoader is type(pandas.__loader__))",
        "import importlib; importlib.reload(pandas)",
        "print(hasattr(pandas.Series, 'ollama'))",
    )
    assert run(*lines) == ["1", "True", "True"]


def test_a_missing_pandas_still_raises_import_error() -> None:
    lines = (
        "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]",
        f"sys.path.insert(0, {str(__import__('pathlib').Path(__file__).parents[2])!r})",
        "import ollama_nb",
        "try: import pandas",
        "except ModuleNotFoundError as error: print(error)",
    )
    assert run(*lines) == ["No module named 'pandas'"]
