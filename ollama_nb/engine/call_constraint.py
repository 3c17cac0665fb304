"""Compile grammars of tool calls (``reply/call_grammar.py``) to llguidance's Lark dialect.

Special tokens are referred to by their numbers: a vocabulary that has ``<tool_call>`` as a token must get that token,
and its name spelled with other tokens is not the same. In a vocabulary without the token, the name is ordinary text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ollama_nb.engine.json_schema import parse_schema
from ollama_nb.errors import BadRequest
from ollama_nb.reply.call_grammar import (
    CallGrammar,
    FreeText,
    JsonValue,
    Markup,
    Members,
    OneOf,
    Part,
    Repeated,
    Series,
    Verbatim,
)

MAX_BYTES = 1 << 20  # of a grammar

SplitMarkup = Callable[[str], Sequence[str | int]]
"""Splits text into special tokens (their ids) and the text between them."""


def to_lark(grammar: CallGrammar, split: SplitMarkup, json_style: dict[str, Any]) -> str:
    """The Lark text of a grammar. Raises BadRequest for a schema that cannot be constrained, and above MAX_BYTES."""
    return _Lark(split, json_style, grammar.unquotable).write(grammar.body)


def json_values(part: Part) -> list[JsonValue]:
    """All JSON values within a part, to find the one that the compiler refuses."""
    match part:
        case JsonValue():
            return [part]
        case Series() | OneOf() | Members():
            return [value for inner in part.parts for value in json_values(inner)]
        case Repeated():
            return json_values(part.part)
    return []


def prepared(value: JsonValue) -> dict[str, Any]:
    """The checked schema of a value. Raises BadRequest that names the tool."""
    try:
        return parse_schema(value.schema)
    except BadRequest as error:
        raise BadRequest(f'tool "{value.tool}", {value.path}: {error.message}') from None


class _Lark:
    """Writes the rules; each JSON Schema and each text is a rule of its own, written once."""

    def __init__(self, split: SplitMarkup, json_style: dict[str, Any], unquotable: Sequence[str]) -> None:
        self._split, self._json_style, self._unquotable = split, json_style, unquotable
        self._rules: dict[str, str] = {}  # body → name
        self._size = 0

    def write(self, body: Part) -> str:
        start = self._part(body)
        return "\n".join([f"start: {start}", *(f"{name}: {rule}" for rule, name in self._rules.items())])

    def _part(self, part: Part) -> str:
        match part:
            case Markup(text):
                return self._markup(text)
            case Verbatim(text):
                return _quoted(text)
            case JsonValue():
                return self._json(part)
            case FreeText():
                return self._free_text(part)
            case Series(parts):
                return " ".join(filter(None, map(self._part, parts))) or '""'
            case OneOf(parts):
                return f"({' | '.join(map(self._part, parts))})"
            case Repeated(inner, separator, most):
                one = self._rule("r", self._part(inner))
                return f"{one} ({self._part(separator)} {one}){{0,{most - 1}}}"
            case Members():
                return self._members(part)

    def _rule(self, kind: str, body: str) -> str:
        name = self._rules.get(body)
        if name is None:
            name = self._rules[body] = f"{kind}{len(self._rules)}"
            self._size += len(body)
            if self._size > MAX_BYTES:
                raise BadRequest(f"the tools are too large: their schemas may have {MAX_BYTES >> 10} KiB together")
        return name

    def _markup(self, text: str) -> str:
        return " ".join(map(_markup_piece, self._split(text)))

    def _json(self, value: JsonValue) -> str:
        schema = prepared(value)
        for mark in self._unquotable:
            if _quoted(mark)[1:-1] in value.schema:
                raise BadRequest(f'tool "{value.tool}": its schema contains {mark}, which ends a call of this model')
        text = json.dumps({"x-guidance": self._json_style, **schema}, ensure_ascii=False)
        return self._rule("j", f"%json {text}")

    def _free_text(self, part: FreeText) -> str:
        """A terminal; a closer that is ordinary text belongs to it, so that the text ends at the first one."""
        pieces = list(self._split(part.closer))
        closer = str(pieces.pop(0)) if pieces and isinstance(pieces[0], str) else ""
        words = "|".join(_pattern(word) for word in dict.fromkeys((part.closer, *part.without)))
        body = _regex(part.pattern or "(?s:.*)")
        body += f" & ~/(?s:.*)({words})(?s:.*)/"
        if part.excluded:
            body += f" & ~{_regex(part.excluded)}"
        text = self._rule("T", f"({body}) {_quoted(closer)}" if closer else body)
        return " ".join([text, *map(_markup_piece, pieces)])

    def _members(self, part: Members) -> str:
        """Rules from the last argument to the first, once for nothing written so far and once for something."""
        first = more = ""
        separator = f"{_quoted(part.separator)} " if part.separator else ""
        for inner, required in zip(reversed(part.parts), reversed(part.required), strict=True):
            body = self._rule("m", self._part(inner))
            written = f"{body} {more}".strip()
            first, more = (
                self._rule("f", written if required else f"{written} | {first or _EMPTY}"),
                self._rule("f", separator + written if required else f"{separator}{written} | {more or _EMPTY}"),
            )
        return first or _EMPTY


_EMPTY = '""'


def _markup_piece(piece: str | int) -> str:
    return _quoted(piece) if isinstance(piece, str) else f"<[{piece}]>"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(pattern: str) -> str:
    """A pattern between slashes; those within it are escaped."""
    return "/" + pattern.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n") + "/"


def _pattern(text: str) -> str:
    """A pattern for exactly this text."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)
