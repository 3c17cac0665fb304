"""Arguments as the Gemma models write them: ``{key:value,other:[1,2]}`` with strings in marks of their own.

Rule: what does not read cleanly is repaired only where one reading is left; anything else is no call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_nb.reply.cursor import Cursor
from ollama_nb.reply.objects import read_json

DEPTH = 64
_KEY = re.compile(r"[^:{},\[\]]+")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_SCALAR = re.compile(r"[^,{}\[\]]*")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class NotArguments(ValueError):
    """The text is no object; the message says what is missing."""


class ArgumentReader(Cursor):
    """``mark`` encloses strings. ``texts``: arguments whose bare words are text, None for all; ``known``: all names."""

    def __init__(
        self,
        text: str,
        mark: str,
        words: Mapping[str, Any],
        texts: Sequence[str] | None = None,
        known: Sequence[str] = (),
    ) -> None:
        super().__init__(text)
        self._mark = mark
        self._words, self._texts, self._known = words, texts, known
        self._repaired = False

    def read(self) -> dict[str, Any]:
        """The outermost object, which must be all that there is. Raises NotArguments."""
        self._blanks()
        value = self._mapping(0)
        if self._text[self._at :].strip():
            raise NotArguments("text behind the arguments")
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        if not self._take("{"):
            raise NotArguments("no arguments in braces")
        items: dict[str, Any] = {}
        while self._skip():
            if self._take("}"):
                return items
            key = self._key()
            items[key] = self._value(key, depth + 1)
        if self._repaired:
            return items
        raise NotArguments("an object that does not end")

    def _key(self) -> str:
        key = self._string() if self._text.startswith(self._mark, self._at) else self._key_text()
        self._blanks()
        if not self._take(":"):
            raise NotArguments(f"no value for {key}")
        return key

    def _key_text(self) -> str:
        for pattern, quotes in ((_JSON_STRING, 1), (_QUOTED, 1), (_KEY, 0)):
            if match := self._match(pattern):
                return match[0][quotes : len(match[0]) - quotes].strip()
        raise NotArguments("an argument without a name")

    def _value(self, key: str, depth: int) -> Any:
        if depth > DEPTH:
            raise NotArguments("values too deep inside each other")
        self._blanks()
        if self._text.startswith(self._mark, self._at):
            return self._string()
        for pattern in (_JSON_STRING, _QUOTED):
            if match := pattern.match(self._text, self._at):
                return self._quoted(match)
        if self._text.startswith("{", self._at):
            return self._mapping(depth)
        return self._list(key, depth) if self._take("[") else self._scalar(key, depth)

    def _list(self, key: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while self._skip():
            if self._take("]"):
                return items
            if self._text.startswith("}", self._at):
                break
            items.append(self._value(key, depth + 1))
        raise NotArguments("a list that does not end")

    def _string(self) -> str:
        start = self._at + len(self._mark)
        end = self._text.find(self._mark, start)
        if end >= 0:
            self._at = end + len(self._mark)
            return self._text[start:end]
        # The last string was not closed: it goes up to the brace that ends the arguments.
        self._repaired, self._at = True, len(self._text)
        rest = self._text[start:].rstrip()
        return rest[:-1] if rest.endswith(("}", "]")) else rest

    def _quoted(self, match: re.Match[str]) -> str:
        self._at = match.end()
        if match[0].startswith("'"):
            self._repaired = True
            self._take(self._mark)
            return match[1]
        value = read_json(match[0])
        return value if isinstance(value, str) else match[0][1:-1]

    def _scalar(self, key: str, depth: int) -> Any:
        match = _SCALAR.match(self._text, self._at)
        text = match[0].strip() if match else ""
        value = self._plain(text)
        if value is not _NONE and match:
            self._at = match.end()
            return value
        if self._texts is None:
            self._at = match.end() if match else self._at
            return text
        if depth == 1 and key in self._texts:
            return self._bare_text()
        raise NotArguments(f"no value for {key}")

    def _plain(self, text: str) -> Any:
        if text in self._words:
            return self._words[text]
        if not _NUMBER.fullmatch(text) or len(text) > 300:
            return _NONE
        number = float(text)
        return int(text) if re.fullmatch("-?[0-9]+", text) else number if abs(number) != float("inf") else _NONE

    def _bare_text(self) -> str:
        """Text without marks: up to the next argument that is known, or the brace at the end."""
        self._repaired = True
        names = "|".join(map(re.escape, self._known))
        match = re.compile(rf",\s*(?:{names})\s*:").search(self._text, self._at) if names else None
        start, end = self._at, match.start() if match else len(self._text)
        self._at = end
        if match:
            return self._text[start:end]
        text = self._text[start:].rstrip()
        return text[:-1] if text.endswith("}") else text


_NONE: Any = object()
