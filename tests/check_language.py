"""Find words and phrases that this project does not use: ``python tests/check_language.py [PATH ...]``.

In Python files comments, strings and the names of functions and classes are checked, not the rest of the code; in
tests, strings other than docstrings are data and are skipped. In notebooks the Markdown cells are checked, in other
files every line. Prints ``file:line: phrase: the line`` and ends with status 1 when anything was found.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACES = ("ollama_nb", "server_ext", "tests", "notebooks", "docs", ".ci", "binder",
          "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")  # fmt: skip
SKIPPED = ("notebooks/library/", "tests/golden/", "tests/models/", "tests/check_language.py", "tests/test_docs.py")
KINDS = {".py", ".md", ".ipynb", ".js", ".css", ".toml", ".yml", ".yaml", ".txt", ""}

_ACTORS = r"(?:model|server|template|file|client|registry|engine|runner|test|checkpoint|tokenizer|header|schema)s?"
_NOT_A_NOUN = "longer|more|less|fewer|different|better|later|such|matter"
PHRASES = {
    r"\b(?:is|are|was|were) none\b": "is missing, is not a valid …",
    rf"(?<![Tt]here )\b(?:is|are|was|were) no (?!{_NOT_A_NOUN})\w": "is not a …",
    r"\bso (?:many|long)\b": "the number, the parameter's name",
    r"\b(?:told|said|heard)\b": "reported, returned, logged, received",
    r"\b(?:nobody|somebody|whoever|anybody)\b": "no client, another process, the first waiter",
    r"\b(?:goes|go|went|going) on\b": "continues, resumes",
    r"\b(?:lies|lie|lay|stands?|stood) (?:in|on|at|there|here|beside|behind|where)\b": "is in, is stored in",
    r"\b(?:anew|for ever|in vain)\b": "again, forever, has no effect",
    r"\bbefore (?:its|their) end\b": "ends prematurely",
    r"\bwhat (?:came|comes|it wants|they want)\b": "the received bytes, the requested size",
    r"\bthose (?:that|which|who) (?:are|were|is|have|had)\b": "the remaining …",
    r"\bno \w+ here\b": "there is no …",
    r"\b(?:house|doors?|floors?)\b": "package, entry point, layer",
    r"\bNothing in silence|^#+ Accidents|\bWho does what\b": "No silent failures, Isolation, Activity",
    rf"\b{_ACTORS} (?:says?|speaks?|knows?|thinks|wants?|tells?|believes?|hears?)\b": "what it does or contains",
    r"\b(?:bark|barks|patience|kitchen)\b": "the field's term",
}
NAMES = re.compile(r"(?:^|_)(?:said|told|heard|lived|bark|whoever|nobody|somebody|anew|saying|vain|kitchen)(?:_|$)")
"""Words that names of functions and classes do not contain."""

ALLOWED: tuple[str, ...] = (
    "math.floor",
    "floor division",
    "there is no ",
    "There is no ",
)
"""Texts in which a phrase is right: terms, and Ollama's own messages."""

Finding = tuple[int, str, str, str]
"""Line number, what was found, what to write instead, the line."""


def check(path: Path) -> Iterator[Finding]:
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        yield from _check_python(text, is_test="tests" in path.parts)
    elif path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(text)["cells"], 1):
            if cell["cell_type"] == "markdown":
                yield from ((number, *rest) for _, *rest in check_text("".join(cell["source"])))
    else:
        yield from check_text(text)


def check_text(text: str, first: int = 1) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), first):
        plain = line
        for allowed in ALLOWED:
            plain = plain.replace(allowed, "·")
        for phrase, instead in PHRASES.items():
            if found := re.search(phrase, plain):
                yield number, found[0], instead, line.strip()


def _check_python(text: str, *, is_test: bool) -> Iterator[Finding]:
    docstrings = _docstring_lines(text) if is_test else None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and (docstrings is None or token.start[0] in docstrings)
        ):
            yield from check_text(token.string, token.start[0])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and NAMES.search(node.name):
            yield node.lineno, node.name, "a verb of what it does", text.splitlines()[node.lineno - 1].strip()


def _docstring_lines(text: str) -> set[int]:
    """The first lines of all strings that are statements."""
    return {
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def files_in(places: list[Path]) -> Iterator[Path]:
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            relative = path.resolve().relative_to(ROOT).as_posix()
            generated = "__pycache__" in relative or ".ipynb_checkpoints" in relative
            if path.is_file() and path.suffix in KINDS and not generated and not relative.startswith(SKIPPED):
                yield path


def main(arguments: list[str]) -> int:
    places = [Path(argument) for argument in arguments] or [ROOT / place for place in PLACES]
    count = 0
    for path in files_in([place for place in places if place.exists()]):
        for number, phrase, instead, line in check(path):
            count += 1
            print(f"{path.resolve().relative_to(ROOT)}:{number}: {phrase!r} ({instead}): {line[:140]}")
    print(f"{count} findings", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
