"""What a docstring says: the text on top, and a line about each parameter, in the three usual ways of writing it."""

from __future__ import annotations

import inspect
import re

_RULE = re.compile(r"\s*-{3,}\s*")
_SECTION = re.compile(
    r"(args|arguments|parameters|params|returns?|raises|yields?|examples?|notes?|attributes|see also|references)\s*:?",
    re.IGNORECASE,
)
_PARAMETERS = re.compile(r"(args|arguments|parameters|params)\s*:?", re.IGNORECASE)
_FIELD = re.compile(r":param\s+(?:[^:]*?\s)?\*{0,2}(\w+)\s*:\s*(.*)")
_COLON = re.compile(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NAME = re.compile(r"\*{0,2}(\w+)\s*(?::.*)?")


def read(function: object) -> tuple[str, dict[str, str]]:
    """The text before the first section, and parameter → what is said about it (Google's, NumPy's or Sphinx's way)."""
    lines = (inspect.getdoc(function) or "").splitlines()
    top: list[str] = []
    said: dict[str, list[str]] = {}
    section, current = "", ""
    for at, line in enumerate(lines):
        underlined = at + 1 < len(lines) and _RULE.fullmatch(lines[at + 1])
        if field := _FIELD.match(line):
            section, current = "fields", field[1]
            said[current] = [field[2]]
        elif line.startswith(":"):
            section, current = "other", ""
        elif _SECTION.fullmatch(line) and (underlined or line.rstrip().endswith(":")):
            known = _PARAMETERS.fullmatch(line)
            section, current = ("numpy" if underlined else "google") if known else "other", ""
        elif not section:
            top.append(line)
        elif not _RULE.fullmatch(line):
            current = _continued(line, section, current, said)
    return "\n".join(top).strip(), {name: " ".join(filter(None, map(str.strip, told))) for name, told in said.items()}


def _continued(line: str, section: str, current: str, said: dict[str, list[str]]) -> str:
    """Take one line of a section; the parameter that it is about."""
    indented = line[:1].isspace()
    if section == "numpy" and line.strip() and not indented:
        name = _NAME.fullmatch(line.strip())
        current = name[1] if name else ""
        said.setdefault(current, [])
    elif section == "google" and (entry := _COLON.fullmatch(line)) and _depth(line) <= 4:
        current = entry[1]
        said[current] = [entry[2]]
    elif current:
        said[current].append(line)
    return current


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
