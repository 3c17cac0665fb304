"""Write docs/api.md from docstrings and help texts: ``python docs/generate_api.py``, or ``--check`` to compare only."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import ollama_nb
import ollama_nb.store.registry.errors  # defines error classes
from ollama_nb.cli.main import main as ollama
from ollama_nb.errors import OllamaError, family

TARGET = Path(__file__).with_name("api.md")
HEAD = """\
# API

Generated from docstrings and help texts by `make docs`; a test compares this page with the code. The REST API is
described in [openapi.yaml](openapi.yaml), which a running server displays at `/docs`.
"""
WIDTH = 116  # columns of a signature in a code block
INTERNAL_BASES = {"Panel"}
"""Base classes whose methods are not for users; methods named ``do_…`` handle messages of a widget's page."""


def page() -> str:
    parts = [HEAD, "## Python\n"]
    parts += [entry(name, getattr(ollama_nb, name)) for name in ollama_nb.__all__ if not name.startswith("_")]
    parts += ["## Tables\n", entry("df.ollama", type(pd.DataFrame().ollama))]
    parts += ["## Magics\n", *magics_help(), "## Command line\n", *command_line_help()]
    parts += ["## Error codes\n", error_codes()]
    return "\n".join(parts)


def error_codes() -> str:
    """A table of all errors that users and clients can see: their codes, HTTP statuses and docstrings."""
    rows = [
        f"| `{error.code}` | {error.status} | `{error.__name__}` | {' '.join(text_of(error).split())} |"
        for error in dict.fromkeys(family(OllamaError))
    ]
    head = (
        "Every error body and every error in a stream has its code in `code`. In Python it is `error.code`, and the\n"
        "class is the same in server and client.\n\n| Code | Status | Class | Meaning |\n|---|---|---|---|"
    )
    return "\n".join([head, *rows, ""])


def entry(name: str, value: Any) -> str:
    """A function, or a class with its public methods and properties."""
    lines = [f"### `{name}`\n", signature(name, value), text_of(value)]
    if inspect.isclass(value):
        for member, found in public_members(value):
            lines += [f"#### `{name}.{member}`\n", signature(member, found), text_of(found)]
    return "\n".join(line for line in lines if line)


def public_members(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties with a docstring, in the order of their definition, inherited ones last."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("ollama_nb") or base.__name__ in INTERNAL_BASES:
            continue
        for name, value in vars(base).items():
            plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            is_member = (inspect.isfunction(plain) or isinstance(plain, property)) and plain.__doc__
            if is_member and name not in seen and not name.startswith(("_", "do_")):
                yield name, plain
            seen.add(name)


def signature(name: str, value: Any) -> str:
    if isinstance(value, property):
        return ""
    if inspect.isclass(value) and value.__init__ is object.__init__:
        return ""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    shown = [part for part in found.parameters.values() if part.name != "self"]
    text = unquoted(f"{name}{found.replace(parameters=shown)}")
    if len(text) > WIDTH:
        arguments = "".join(f"    {line},\n" for line in _parameters(shown))
        arrow = text.rpartition(") -> ")[2] if ") -> " in text else ""
        text = f"{name}(\n{arguments})" + (f" -> {arrow}" if arrow else "")
    return f"```python\n{text}\n```\n"


def _parameters(parameters: list[inspect.Parameter]) -> Iterator[str]:
    star = any(part.kind is part.VAR_POSITIONAL for part in parameters)
    for part in parameters:
        if part.kind is part.KEYWORD_ONLY and not star:
            star = True
            yield "*"
        yield unquoted(str(part))


def unquoted(text: str) -> str:
    """A signature without the quotes that postponed evaluation puts around annotations."""
    return re.sub(r"(: |-> )'((?:[^'\\]|\\.)*)'", r"\1\2", text)


def text_of(value: Any) -> str:
    """The docstring as Markdown: code in single backticks, examples in code blocks."""
    text = inspect.cleandoc(value.__doc__ or "")
    if not text or text.startswith(f"{getattr(value, '__name__', '')}("):
        return ""
    return re.sub(r"``(.+?)``", r"`\1`", text) + "\n"


def magics_help() -> Iterator[str]:
    run = magic_runner()
    overview = run("help")
    yield code_block(overview)
    shared = "  --num-ctx" + run("help run").partition("  --num-ctx")[2]  # the model options, in one block
    for name in dict.fromkeys(re.findall(r"^  %ollama (\w+)", overview, re.MULTILINE)):
        text = run(f"help {name}")
        if name != "run":
            text = text.replace(shared, "  and the model options of `%ollama run`\n")
        yield f"### `%ollama {name}`\n\n{code_block(text)}"


def magic_runner() -> Callable[[str], str]:
    """A function that runs one ``%ollama`` line in a shell and returns what it prints."""
    config = Config()
    config.HistoryManager.enabled = False
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"IPYTHONDIR": folder}):
        shell = InteractiveShell.instance(config=config)
    ollama_nb.load_ipython_extension(shell)

    def run(line: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            shell.run_line_magic("ollama", line)
        return output.getvalue()

    return run


def command_line_help() -> Iterator[str]:
    overview = printed("--help")
    yield code_block(overview)
    verbs = overview.partition("Available Commands:\n")[2].partition("\n\n")[0]
    for name in re.findall(r"^  (\w+)", verbs, re.MULTILINE):
        yield f"### `ollama {name}`\n\n{code_block(printed('help', name))}"


def printed(*arguments: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        ollama(arguments)
    return output.getvalue()


def code_block(text: str) -> str:
    return f"```text\n{textwrap.dedent(text).strip()}\n```\n"


def main(arguments: list[str]) -> int:
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", page()))
    if arguments == ["--check"]:
        if TARGET.read_text("utf-8") != text:
            print("docs/api.md is out of date: run `make docs`", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
