"""Notations for tool calls and arguments that several model families share.

* ``name(key="text", other=[1, True])``, as in Python: Olmo, LFM2
* ``name<arg_key>key</arg_key><arg_value>value</arg_value>``: GLM, Laguna
* ``{key:value,other:[1,2]}`` with strings between special tokens: the Gemma families

Each is parsed once from left to right. Text that does not follow its notation raises NotationError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ollama_nb.reply.arguments import parse_json, replace_lone_surrogates
from ollama_nb.reply.output import MalformedCall, ParsedCall

MAX_DEPTH = 64  # levels of nested lists and objects


class NotationError(ValueError):
    """The text does not follow the notation. The message says what is missing; callers report it as a tool error."""


class _Cursor:
    """A position (``_at``) in a text (``_text``)."""

    _SEPARATORS = re.compile(r"[\s,]*")
    _SPACES = re.compile(r"\s*")

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def _skip(self) -> bool:
        """Advance past white space and commas; return False at the end of the text."""
        self._match(self._SEPARATORS)
        return self._at < len(self._text)

    def _skip_spaces(self) -> None:
        self._match(self._SPACES)

    def _take(self, mark: str) -> bool:
        """Advance past ``mark`` if the text continues with it."""
        if self._text.startswith(mark, self._at):
            self._at += len(mark)
            return True
        return False

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Advance past a match of ``pattern`` at the current position."""
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return match


# Calls in Python syntax

_PYTHON_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None, "nil": None}
_PYTHON_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_PYTHON_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_PYTHON_NAME = re.compile(r"\w[\w.\-]*")


def python_calls(body: str, closed: bool) -> Sequence[ParsedCall | MalformedCall]:
    """Parse the body of a call region as calls in Python syntax."""
    try:
        return parse_python_calls(body)
    except NotationError as error:
        return [MalformedCall(body, f"the tool call cannot be parsed: {error}")]


def parse_python_calls(text: str) -> list[ParsedCall]:
    """Parse consecutive calls, optionally in brackets, separated by commas or white space. Raises NotationError."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    calls = list(_PythonCallsParser(text).calls())
    if not calls:
        raise NotationError("no function name")
    return calls


class _PythonCallsParser(_Cursor):
    def calls(self) -> Iterator[ParsedCall]:
        while self._skip():
            yield self._call()

    def _call(self) -> ParsedCall:
        match = self._match(_PYTHON_NAME)
        if match is None:
            raise NotationError("no function name")
        self._skip_spaces()
        self._expect("(", "no opening parenthesis")
        arguments: dict[str, Any] = {}
        while self._skip():
            if self._take(")"):
                return ParsedCall(match[0], arguments)
            key = self._match(_PYTHON_NAME)
            if key is None:
                raise NotationError("an argument without a name")
            self._skip_spaces()
            self._expect("=", f"no value for {key[0]}")
            arguments[key[0]] = self._value(0)
        raise NotationError("no closing parenthesis")

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise NotationError("values are nested too deeply")
        self._skip_spaces()
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
                return str(replace_lone_surrogates("".join(out)))
            if char == "\\" and self._at < len(self._text):
                char = self._escape()
            out.append(char)
        raise NotationError("a string is not closed")

    def _escape(self) -> str:
        char = self._text[self._at]
        self._at += 1
        if char == "u" and re.fullmatch("[0-9a-fA-F]{4}", self._text[self._at : self._at + 4]):
            self._at += 4
            return chr(int(self._text[self._at - 4 : self._at], 16))
        return _PYTHON_ESCAPES.get(char, char if char in "\\\"'/" else "\\" + char)

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        self._at += 1
        while self._skip():
            if self._take("]"):
                return items
            items.append(self._value(depth + 1))
        raise NotationError("a list is not closed")

    def _mapping(self, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        self._at += 1
        while self._skip():
            if self._take("}"):
                return items
            quote = self._text[self._at]
            key = self._string(quote) if quote in "'\"" else self._scalar_text(":")
            self._skip_spaces()
            self._expect(":", f"no value for {key}")
            items[key] = self._value(depth + 1)
        raise NotationError("an object is not closed")

    def _scalar(self) -> Any:
        text = self._scalar_text("")
        if not text:
            raise NotationError("a value is missing")
        if text in _PYTHON_WORDS:
            return _PYTHON_WORDS[text]
        if _PYTHON_NUMBER.fullmatch(text):
            return _python_number(text)
        return text

    def _scalar_text(self, more: str) -> str:
        """Take the text up to a comma or a closing bracket, except inside brackets that the text itself opens."""
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
            raise NotationError(why)


def _python_number(text: str) -> int | float | str:
    if re.fullmatch("-?[0-9]+", text):
        return int(text) if len(text) < 400 else text
    number = float(text)
    return text if number in (float("inf"), float("-inf")) else number


# Calls with tagged arguments

KEY, END_KEY, VALUE, END_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_TAG = re.compile("|".join((KEY, END_KEY, VALUE, END_VALUE)))
_OUTSIDE, _IN_KEY, _BETWEEN, _IN_VALUE = "outside", "in key", "between", "in value"


def parse_tagged_call(text: str, *, strict: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Parse one call to the tool's name and its arguments in order. Raises NotationError.

    A missing tag is inserted where its position is certain, unless ``strict``.
    """
    name, rest = _split_name(text)
    if not name:
        raise NotationError("the tool call has no tool name")
    sequence = _TagSequence(strict)
    for before, tag in _pieces(rest):
        sequence.tag(before, tag)
    if any(not key for key, _ in sequence.pairs):
        raise NotationError("the tool call has an argument without a name")
    return name, sequence.pairs


def _split_name(text: str) -> tuple[str, str]:
    """Split a call into the name and the rest. If the first key's opening tag is missing, white space ends the name."""
    first = _TAG.search(text)
    if first is None:
        return text.strip(), ""
    before = text[: first.start()].strip()
    if first[0] == KEY or not re.search(r"\s", before):
        return before, text[first.start() :]
    name, key = before.split(None, 1)
    return name, key + text[first.start() :]


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield each tag with the text before it, and the text after the last tag with an empty tag."""
    at = 0
    for match in _TAG.finditer(text):
        yield text[at : match.start()], match[0]
        at = match.end()
    yield text[at:], ""


class _TagSequence:
    """Collects key-value pairs from tags."""

    def __init__(self, strict: bool) -> None:
        self.pairs: list[tuple[str, str]] = []
        self._strict, self._place, self._key = strict, _OUTSIDE, ""

    def tag(self, before: str, tag: str) -> None:
        expected = (self._place, tag) in _EXPECTED
        if self._strict and (not expected or (before.strip() and self._place in (_OUTSIDE, _BETWEEN))):
            raise NotationError("the tool call is incomplete")
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
                raise NotationError("text between the arguments of the tool call")
            self._place = _IN_KEY if tag else _OUTSIDE
        elif before.strip() and tag in (END_KEY, VALUE):  # <arg_key> was left out
            self._in_key(before, tag)
        else:
            raise NotationError("the tool call has an argument without a name")

    def _in_key(self, before: str, tag: str) -> None:
        if tag in (END_VALUE, KEY, ""):
            raise NotationError("the tool call has an argument without a value")
        self._key, self._place = before.strip(), _IN_VALUE if tag == VALUE else _BETWEEN

    def _between(self, before: str, tag: str) -> None:
        if tag == VALUE and not before.strip():
            self._place = _IN_VALUE
        elif before.strip() and tag in (END_VALUE, KEY, ""):  # <arg_value> was left out
            self._value(before, tag)
        else:
            raise NotationError("the tool call has an argument without a value")

    def _in_value(self, before: str, tag: str) -> None:
        if tag in (VALUE, END_KEY):
            raise NotationError("an argument of the tool call is not closed")
        self._value(before, tag)

    def _value(self, text: str, tag: str) -> None:
        self.pairs.append((self._key, text))
        self._place = _IN_KEY if tag == KEY else _OUTSIDE


_EXPECTED = frozenset(
    {(_OUTSIDE, KEY), (_OUTSIDE, ""), (_IN_KEY, END_KEY), (_BETWEEN, VALUE), (_IN_VALUE, END_VALUE)},
)


# Objects with bare keys

_BRACE_KEY = re.compile(r"[^:{},\[\]]+")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_BARE_SCALAR = re.compile(r"[^,{}\[\]]*")
_BRACE_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class BraceObjectParser(_Cursor):
    """Parses an object with bare keys.

    ``mark`` encloses strings. ``words`` are the constants. ``texts`` are the arguments whose unquoted values are text,
    None for all arguments; ``known`` are the names of all arguments. Malformed text is repaired only where a single
    interpretation remains.
    """

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

    def parse(self) -> dict[str, Any]:
        """Parse the text, which must be one object. Raises NotationError."""
        self._skip_spaces()
        value = self._mapping(0)
        if self._text[self._at :].strip():
            raise NotationError("text after the arguments")
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        if not self._take("{"):
            raise NotationError("no arguments in braces")
        items: dict[str, Any] = {}
        while self._skip():
            if self._take("}"):
                return items
            key = self._key()
            items[key] = self._value(key, depth + 1)
        if self._repaired:
            return items
        raise NotationError("an object is not closed")

    def _key(self) -> str:
        key = self._string() if self._text.startswith(self._mark, self._at) else self._key_text()
        self._skip_spaces()
        if not self._take(":"):
            raise NotationError(f"no value for {key}")
        return key

    def _key_text(self) -> str:
        for pattern, quotes in ((_JSON_STRING, 1), (_SINGLE_QUOTED, 1), (_BRACE_KEY, 0)):
            if match := self._match(pattern):
                return match[0][quotes : len(match[0]) - quotes].strip()
        raise NotationError("an argument without a name")

    def _value(self, key: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise NotationError("values are nested too deeply")
        self._skip_spaces()
        if self._text.startswith(self._mark, self._at):
            return self._string()
        for pattern in (_JSON_STRING, _SINGLE_QUOTED):
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
        raise NotationError("a list is not closed")

    def _string(self) -> str:
        start = self._at + len(self._mark)
        end = self._text.find(self._mark, start)
        if end >= 0:
            self._at = end + len(self._mark)
            return self._text[start:end]
        # The last string is not closed: it extends to the brace that ends the arguments.
        self._repaired, self._at = True, len(self._text)
        rest = self._text[start:].rstrip()
        return rest[:-1] if rest.endswith(("}", "]")) else rest

    def _quoted(self, match: re.Match[str]) -> str:
        self._at = match.end()
        if match[0].startswith("'"):
            self._repaired = True
            self._take(self._mark)
            return match[1]
        value = parse_json(match[0])
        return value if isinstance(value, str) else match[0][1:-1]

    def _scalar(self, key: str, depth: int) -> Any:
        match = _BARE_SCALAR.match(self._text, self._at)
        text = match[0].strip() if match else ""
        value = self._plain(text)
        if value is not _NO_VALUE and match:
            self._at = match.end()
            return value
        if self._texts is None:
            self._at = match.end() if match else self._at
            return text
        if depth == 1 and key in self._texts:
            return self._bare_text()
        raise NotationError(f"no value for {key}")

    def _plain(self, text: str) -> Any:
        if text in self._words:
            return self._words[text]
        if not _BRACE_NUMBER.fullmatch(text) or len(text) > 300:
            return _NO_VALUE
        number = float(text)
        return int(text) if re.fullmatch("-?[0-9]+", text) else number if abs(number) != float("inf") else _NO_VALUE

    def _bare_text(self) -> str:
        """Take unmarked text up to the next known argument, or to the brace at the end."""
        self._repaired = True
        names = "|".join(map(re.escape, self._known))
        match = re.compile(rf",\s*(?:{names})\s*:").search(self._text, self._at) if names else None
        start, end = self._at, match.start() if match else len(self._text)
        self._at = end
        if match:
            return self._text[start:end]
        text = self._text[start:].rstrip()
        return text[:-1] if text.endswith("}") else text


_NO_VALUE: Any = object()
