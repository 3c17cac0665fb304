"""Calls written like Python: ``name(key="text", other=[1, True])``, and the values in them.

Rule: read once from left to right, no deeper than ``DEPTH``; what is no value of its own is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ollama_nb.reply.cursor import Cursor
from ollama_nb.reply.objects import whole
from ollama_nb.reply.output import Found, Malformed

DEPTH = 64
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None, "nil": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_NAME = re.compile(r"\w[\w.\-]*")


def python_calls(body: str, closed: bool) -> Sequence[Found | Malformed]:
    """``name(key="text", other=1)``, one after another."""
    try:
        return read_calls(body)
    except NotCalls as error:
        return [Malformed(body, f"the tool call cannot be read: {error}")]


class NotCalls(ValueError):
    """The text is no sequence of calls; the message says what is missing."""


def read_calls(text: str) -> list[Found]:
    """Calls one after another, perhaps in brackets, with commas or line breaks between them. Raises NotCalls."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    calls = list(_Reader(text).calls())
    if not calls:
        raise NotCalls("no function name")
    return calls


class _Reader(Cursor):
    def calls(self) -> Iterator[Found]:
        while self._skip():
            yield self._call()

    def _call(self) -> Found:
        match = self._match(_NAME)
        if match is None:
            raise NotCalls("no function name")
        self._blanks()
        self._expect("(", "no opening parenthesis")
        arguments: dict[str, Any] = {}
        while self._skip():
            if self._take(")"):
                return Found(match[0], arguments)
            key = self._match(_NAME)
            if key is None:
                raise NotCalls("an argument without a name")
            self._blanks()
            self._expect("=", f"no value for {key[0]}")
            arguments[key[0]] = self._value(0)
        raise NotCalls("no closing parenthesis")

    def _value(self, depth: int) -> Any:
        if depth > DEPTH:
            raise NotCalls("values too deep inside each other")
        self._blanks()
        mark = self._text[self._at : self._at + 1]
        if mark in ("'", '"') and mark:
            return self._string(mark)
        if mark == "[":
            return self._list(depth)
        if mark == "{":
            return self._mapping(depth)
        return self._scalar()

    def _string(self, quote: str) -> str:
        out: list[str] = []
        self._at += 1
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == quote:
                return str(whole("".join(out)))
            if char == "\\" and self._at < len(self._text):
                char = self._escape()
            out.append(char)
        raise NotCalls("a string that does not end")

    def _escape(self) -> str:
        char = self._text[self._at]
        self._at += 1
        if char == "u" and re.fullmatch("[0-9a-fA-F]{4}", self._text[self._at : self._at + 4]):
            self._at += 4
            return chr(int(self._text[self._at - 4 : self._at], 16))
        return _ESCAPES.get(char, char if char in "\\\"'/" else "\\" + char)

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        self._at += 1
        while self._skip():
            if self._take("]"):
                return items
            items.append(self._value(depth + 1))
        raise NotCalls("a list that does not end")

    def _mapping(self, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        self._at += 1
        while self._skip():
            if self._take("}"):
                return items
            quote = self._text[self._at]
            key = self._string(quote) if quote in "'\"" else self._scalar_text(":")
            self._blanks()
            self._expect(":", f"no value for {key}")
            items[key] = self._value(depth + 1)
        raise NotCalls("an object that does not end")

    def _scalar(self) -> Any:
        text = self._scalar_text("")
        if not text:
            raise NotCalls("a value is missing")
        if text in _WORDS:
            return _WORDS[text]
        if _NUMBER.fullmatch(text):
            return _number(text)
        return text

    def _scalar_text(self, more: str) -> str:
        """Up to a comma or a closing bracket that is not inside brackets of the text's own."""
        start, open_brackets = self._at, 0
        while self._at < len(self._text):
            char = self._text[self._at]
            if not open_brackets and (char in ",)]}" or char in more):
                break
            open_brackets += (char in "([{") - (char in ")]}")
            self._at += 1
        return self._text[start : self._at].strip()

    def _expect(self, mark: str, why: str) -> None:
        if not self._take(mark):
            raise NotCalls(why)


def _number(text: str) -> int | float | str:
    if re.fullmatch("-?[0-9]+", text):
        return int(text) if len(text) < 400 else text
    number = float(text)
    return text if number in (float("inf"), float("-inf")) else number
