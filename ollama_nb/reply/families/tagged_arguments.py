"""Calls written ``name<arg_key>key</arg_key><arg_value>value</arg_value>…``, as the GLM and Laguna models do.

Rule: a tag that was left out is put back where its place is certain; anything else is no call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

KEY, END_KEY, VALUE, END_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_TAG = re.compile("|".join((KEY, END_KEY, VALUE, END_VALUE)))
_OUTSIDE, _IN_KEY, _BETWEEN, _IN_VALUE = "outside", "in key", "between", "in value"


class NotTagged(ValueError):
    """The text is no call of this form; the message says what is missing."""


def read_tagged(text: str, *, strict: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """The tool's name, and keys with values in order. ``strict``: nothing is put back. Raises NotTagged."""
    name, rest = _name(text)
    if not name:
        raise NotTagged("the tool call names no tool")
    reading = _Reading(strict)
    for before, tag in _pieces(rest):
        reading.tag(before, tag)
    if any(not key for key, _ in reading.pairs):
        raise NotTagged("the tool call has an argument without a name")
    return name, reading.pairs


def _name(text: str) -> tuple[str, str]:
    """The name and what follows it. Where the first key's opening tag is missing, a blank ends the name."""
    first = _TAG.search(text)
    if first is None:
        return text.strip(), ""
    before = text[: first.start()].strip()
    if first[0] == KEY or not re.search(r"\s", before):
        return before, text[first.start() :]
    name, key = before.split(None, 1)
    return name, key + text[first.start() :]


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Each tag with the text in front of it; the text behind the last one with an empty tag."""
    at = 0
    for match in _TAG.finditer(text):
        yield text[at : match.start()], match[0]
        at = match.end()
    yield text[at:], ""


class _Reading:
    def __init__(self, strict: bool) -> None:
        self.pairs: list[tuple[str, str]] = []
        self._strict, self._place, self._key = strict, _OUTSIDE, ""

    def tag(self, before: str, tag: str) -> None:
        usual = (self._place, tag) in _USUAL
        if self._strict and (not usual or (before.strip() and self._place in (_OUTSIDE, _BETWEEN))):
            raise NotTagged("the tool call is incomplete")
        if self._place == _OUTSIDE:
            self._outside(before, tag)
        elif self._place == _IN_KEY:
            self._in_key(before, tag)
        elif self._place == _BETWEEN:
            self._between(before, tag)
        else:
            self._in_value(before, tag)

    def _outside(self, before: str, tag: str) -> None:
        if tag in ("", KEY):
            if before.strip():
                raise NotTagged("text between the arguments of the tool call")
            self._place = _IN_KEY if tag else _OUTSIDE
        elif before.strip() and tag in (END_KEY, VALUE):  # <arg_key> was left out
            self._in_key(before, tag)
        else:
            raise NotTagged("the tool call has an argument without a name")

    def _in_key(self, before: str, tag: str) -> None:
        if tag in (END_VALUE, KEY, ""):
            raise NotTagged("the tool call has an argument without a value")
        self._key, self._place = before.strip(), _IN_VALUE if tag == VALUE else _BETWEEN

    def _between(self, before: str, tag: str) -> None:
        if tag == VALUE and not before.strip():
            self._place = _IN_VALUE
        elif before.strip() and tag in (END_VALUE, KEY, ""):  # <arg_value> was left out
            self._value(before, tag)
        else:
            raise NotTagged("the tool call has an argument without a value")

    def _in_value(self, before: str, tag: str) -> None:
        if tag in (VALUE, END_KEY):
            raise NotTagged("an argument of the tool call does not end")
        self._value(before, tag)

    def _value(self, text: str, tag: str) -> None:
        self.pairs.append((self._key, text))
        self._place = _IN_KEY if tag == KEY else _OUTSIDE


_USUAL = frozenset(
    {(_OUTSIDE, KEY), (_OUTSIDE, ""), (_IN_KEY, END_KEY), (_BETWEEN, VALUE), (_IN_VALUE, END_VALUE)},
)
