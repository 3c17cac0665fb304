"""The arguments of tool calls while a model writes them, for notations in which they are a JSON object.

A call is reported once its name is known and its arguments begin; then its text is passed on as it arrives. The text is
changed only where a parser of JSON could read it differently from this program: control characters in strings become
escapes, and escapes of lone surrogates become U+FFFD.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from ollama_nb.reply.arguments import parse_json

MAX_HEAD = 4096  # characters of a call before its arguments

NameOf = Callable[[re.Match[str]], str]
"""The name of the tool whose call begins with the matched text."""


class CallPiece(NamedTuple):
    """The next piece of the arguments of a call; the first piece of a call has its ``name``."""

    text: str
    name: str = ""


def quoted_name(match: re.Match[str]) -> str:
    """The name in a match whose group ``name`` is a JSON string."""
    name = parse_json(match["name"])
    return name if isinstance(name, str) else ""


def plain_name(match: re.Match[str]) -> str:
    return match["name"].strip()


def json_head(name_key: str, arguments_key: str, before: str = r"\s*\{\s*") -> re.Pattern[str]:
    """A pattern for the text of a JSON call up to its arguments, which are an object; ``before`` precedes the name."""
    return re.compile(
        rf'{before}"{name_key}"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*+")\s*,\s*"{arguments_key}"\s*:\s*(?=\{{)', re.DOTALL
    )


class ArgumentStream:
    """Reports the arguments of the calls in one text, which arrives in pieces.

    ``head`` matches the text of a call up to the opening brace of its arguments. ``known``: the names of tools of which
    calls are reported; None for all.
    """

    def __init__(self, head: re.Pattern[str], name_of: NameOf, known: Collection[str] | None = None) -> None:
        self._head, self._name_of, self._known = head, name_of, known
        self._before = ""
        self._searches = True
        self._object: _ObjectText | None = None

    def feed(self, text: str) -> list[CallPiece]:
        """Consume the next piece of text and return what is new in the arguments."""
        pieces: list[CallPiece] = []
        while text and (self._object is not None or self._searches):
            name = ""
            if self._object is None:
                self._before += text
                match = self._head.match(self._before, 0, MAX_HEAD)
                if match is None:
                    self._searches = len(self._before) < MAX_HEAD
                    break
                name, text = self._name_of(match), self._before[match.end() :]
                if not name or (self._known is not None and name not in self._known):
                    self._searches = False
                    break
                self._object = _ObjectText()
            written, end = self._object.feed(text)
            if name or written:
                pieces.append(CallPiece(written, name))
            if end < 0:
                break
            self._object, self._before, text = None, "", text[end:]
        return pieces


class _ObjectText:
    """Copies the text of a JSON object up to its closing brace."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._held = ""

    def feed(self, text: str) -> tuple[str, int]:
        """Return the text to report, and the index after the closing brace in ``text``, or -1 if it is not in there."""
        before = len(self._held)
        text, self._held = self._held + text, ""
        out: list[str] = []
        at = 0
        while at < len(text):
            if self._in_string and _UNFINISHED.fullmatch(text, at):
                self._held = text[at:]
                break
            match = (_IN_STRING if self._in_string else _OUTSIDE).match(text, at)
            assert match is not None
            mark, at = match[0], match.end()
            out.append(_written(match) if self._in_string else mark)
            if mark == '"':
                self._in_string = not self._in_string
            elif not self._in_string and mark in ("{", "}"):
                self._depth += 1 if mark == "{" else -1
                if not self._depth:
                    return "".join(out), at - before
        return "".join(out), -1


_OUTSIDE = re.compile(r'[^"{}]+|["{}]')
_IN_STRING = re.compile(
    r'[^"\\\x00-\x1f]+|"|(?P<control>[\x00-\x1f])|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)
_UNFINISHED = re.compile(
    r"\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?)?)?"
)
"""The beginning of an escape, or of a pair of escaped surrogates."""


def _written(match: re.Match[str]) -> str:
    if match["control"]:
        return json.dumps(match["control"])[1:-1]
    return "\\ufffd" if match["lone"] else match[0]
