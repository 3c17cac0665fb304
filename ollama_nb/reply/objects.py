"""JSON as models write it: objects found in running text, read with a little leniency.

Rule: what is given back can be written as JSON and as UTF-8 again.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn


class ObjectEnd:
    """Finds the brace that closes an object whose opening brace was just read; text may come in pieces."""

    def __init__(self) -> None:
        self._depth = 1
        self._in_string = self._escaped = False

    def find(self, text: str, at: int = 0) -> int:
        """Index behind the closing brace, or -1: it is not in this text, read on in the next piece."""
        if self._escaped:
            if at >= len(text):
                return -1
            self._escaped, at = False, at + 1
        while match := (_STRING_MARK if self._in_string else _OBJECT_MARK).search(text, at):
            mark, at = match[0], match.end()
            if mark == "\\":
                self._escaped, at = at >= len(text), at + 1
            elif mark == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if mark == "{" else -1
                if not self._depth:
                    return at
        return -1


_STRING_MARK = re.compile(r'["\\]')
_OBJECT_MARK = re.compile(r'["{}]')


def objects_in(text: str) -> list[str]:
    """The outermost braced pieces of a text; an unfinished last one is left out."""
    found: list[str] = []
    start = text.find("{")
    while start >= 0:
        end = ObjectEnd().find(text, start + 1)
        if end < 0:
            break
        found.append(text[start:end])
        start = text.find("{", end)
    return found


def as_object(value: Any) -> dict[str, Any] | None:
    """Arguments: an object, a string that holds one, or null for none at all."""
    if isinstance(value, str):
        return read_object(value)
    return {} if value is None else value if isinstance(value, dict) else None


def read_object(text: str) -> dict[str, Any] | None:
    """A JSON object, or None."""
    value = read_json(text)
    return value if isinstance(value, dict) else None


def read_json(text: str) -> Any:
    """A JSON value; None also for what is no JSON. Line breaks inside strings are let through: models write them."""
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return whole(value) if "\\ud" in text.lower() else value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return number


def whole(value: Any) -> Any:
    """Half surrogate pairs, which JSON can write but UTF-8 cannot, become U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {whole(key): whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value
