"""JSON bodies read as Go's decoder reads them, with its error texts; times as Go writes them.

Accepted as in Go: any content type, unknown fields, keys in any letter case, repeated keys (the last one wins), null
for a missing field, anything after the first value, bytes that are not valid UTF-8. Refused: NaN and infinities, deep
nesting, and known fields of the wrong type.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Set
from datetime import UTC, datetime
from typing import Any, NoReturn

from ollama_nb.api.encode import go_quote
from ollama_nb.errors import BadRequest
from ollama_nb.settings import MAX_DURATION

MAX_DEPTH = 64  # levels of nested arrays and objects
MAX_ITEMS = 4_000_000  # values in one body: far above any context length, far below what would fill the memory
MAX_WARNINGS = 16  # warnings about ignored fields in one reply
_ERROR_WINDOW = 1 << 20  # characters that are searched to describe a syntax error
_MAX_DIGITS = 300  # longer integers are checked as floats first
_MAX_NANOSECONDS = (1 << 63) - 1  # Go's longest duration
_BLANK = re.compile(r"[ \t\r\n]*")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")


def decode(body: bytes) -> Any:
    """The first JSON value of a body. Raises BadRequest with Go's error text."""
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_ITEMS:
        raise BadRequest(f"request body holds more than {MAX_ITEMS} values")
    text = body.decode("utf-8", "replace")
    blank = _BLANK.match(text)
    start = blank.end() if blank else 0
    if start == len(text):
        raise BadRequest("missing request body")
    try:
        value, _ = _decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise BadRequest(_go_error(error)) from None
    except RecursionError:
        raise BadRequest(_TOO_DEEP) from None
    scrub = _SURROGATE_ESCAPE.search(body) is not None
    return _tidy(value, 0, scrub=scrub) if scrub or isinstance(value, (dict, list)) else value


_TOO_DEEP = f"request body is nested deeper than {MAX_DEPTH} levels"


def _tidy(value: Any, depth: int, *, scrub: bool) -> Any:
    """Check the depth. With ``scrub``, also replace lone surrogates by U+FFFD, as Go does."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value) if scrub else value
    if not isinstance(value, (dict, list)):
        return value
    if depth >= MAX_DEPTH:
        raise BadRequest(_TOO_DEEP)
    if isinstance(value, dict):
        if scrub:
            return {_tidy(k, depth, scrub=True): _tidy(v, depth + 1, scrub=True) for k, v in value.items()}
        _check_inner(value.values(), depth + 1)
        return value
    if scrub:
        return [_tidy(item, depth + 1, scrub=True) for item in value]
    _check_inner(value, depth + 1)
    return value


def _check_inner(values: Iterable[Any], depth: int) -> None:
    for item in values:
        if isinstance(item, (dict, list)):
            _tidy(item, depth, scrub=False)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its pairs. A repeated key takes its last position: variants in other case are read in order."""
    found = dict(pairs)
    if len(found) < len(pairs):
        found.clear()
        for key, value in pairs:
            found.pop(key, None)
            found[key] = value
    return found


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise BadRequest(f"json: cannot unmarshal number {literal[:20]} into Go value of type float64")
    return number


def _whole(literal: str) -> int:
    if len(literal) > _MAX_DIGITS:
        _finite(literal)
    return int(literal)


def _no_constant(name: str) -> NoReturn:
    if name.startswith("-"):
        raise BadRequest("invalid character 'I' in numeric literal")
    raise BadRequest(f"invalid character '{name[0]}' looking for beginning of value")


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_int=_whole, parse_constant=_no_constant
)

_WORDS = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name": "looking for beginning of object key string",
    "Expecting ':'": "after object key",
    "Invalid control character": "in string literal",
    "Invalid \\escape": "in string escape code",
    "Invalid \\uXXXX": "in \\u hexadecimal character escape",
}


def _go_error(error: json.JSONDecodeError) -> str:
    """Go's error text for one of Python's syntax errors."""
    text, position, message = error.doc, error.pos, error.msg
    if message.startswith("Unterminated string"):
        return "unexpected EOF"
    if message.startswith("Illegal trailing comma"):  # Python 3.13 points at the comma, Go at what follows it
        blank = _BLANK.match(text, position + 1)
        position = blank.end() if blank else position + 1
        kind = "Expecting property name" if text[position : position + 1] == "}" else "Expecting value"
        message = kind
    if message.startswith("Invalid \\escape"):
        position += 1
    position, within = _go_position(text, position, message)
    if position >= len(text):
        return "unexpected EOF"
    if within:
        return f"invalid character {_quoted_char(text[position])} {within}"
    for start, words in _WORDS.items():
        if message.startswith(start):
            return f"invalid character {_quoted_char(text[position])} {words}"
    inside = "object key:value pair" if _container(text, position) == "{" else "array element"
    return f"invalid character {_quoted_char(text[position])} after {inside}"


def _go_position(text: str, position: int, message: str) -> tuple[int, str]:
    """The position and the context that Go reports for an error that Python reports at ``position``.

    Python reports the start of a malformed literal or number, Go the first wrong character. The context is empty
    outside of literals and numbers.
    """
    mark = text[position : position + 1]
    if message.startswith("Expecting value"):
        for word in ("true", "false", "null"):
            if mark == word[0]:
                good = next(n for n in range(1, len(word)) if text[position + n : position + n + 1] != word[n])
                return position + good, f"in literal {word} (expecting {_quoted_char(word[good])})"
        return (position + 1, "in numeric literal") if mark == "-" else (position, "")
    if mark in (".", "e", "E") and text[position - 1].isdigit():
        if mark == ".":
            return position + 1, "after decimal point in numeric literal"
        return position + 1 + (text[position + 1 : position + 2] in ("+", "-")), "in exponent of numeric literal"
    return position, ""


def _container(text: str, position: int) -> str:
    """The innermost open bracket at ``position``; an approximation beyond ``_ERROR_WINDOW`` characters."""
    open_: list[str] = []
    for match in _STRUCTURE.finditer(text, 0, min(position, _ERROR_WINDOW)):
        if match[0] in ("{", "["):
            open_.append(match[0])
        elif match[0] in ("}", "]") and open_:
            open_.pop()
    return open_[-1] if open_ else "{"


def _quoted_char(character: str) -> str:
    """A character as Go quotes it in errors: Go reads bytes, so of a non-ASCII character it shows the first byte."""
    if character > "\x7f":
        character = chr(character.encode("utf-8", "replace")[0])
    return go_quote(character, "'")


class Fields:
    """A JSON object read as the Go struct ``struct``; ``path`` leads to it from the outermost object.

    The struct's package is ``api`` if ``struct`` does not name it. Each method reads one field. A missing field gives
    an empty value, or None where the caller must see the difference; a field of the wrong type raises BadRequest.
    """

    def __init__(self, value: Any, struct: str, path: str = "", go_type: str = "") -> None:
        package, _, self._struct = struct.rpartition(".")
        self._path = path
        if value is None:
            value = {}
        if not isinstance(value, dict):
            into = f"Go struct field {self._struct}.{path}" if path else "Go value"
            go_type = go_type or f"{package or 'api'}.{self._struct}"
            raise BadRequest(f"json: cannot unmarshal {_kind(value)} into {into} of type {go_type}", field=path)
        self._values = {key.casefold(): item for key, item in value.items() if item is not None}
        self._written = {key.casefold(): key for key in value}
        self._known: set[str] = set()

    def raw(self, name: str) -> Any:
        """The value as the client sent it; None for a missing field."""
        self._known.add(name)
        return self._values.get(name)

    def __contains__(self, name: str) -> bool:
        return self.raw(name) is not None

    def ignored(self, more: Set[str] = frozenset()) -> tuple[str, ...]:
        """A warning for each field that has not been read so far and is not in ``more``."""
        known = self._known | more
        unknown = [name for name in self._values if name not in known]
        return tuple(self._warning(name, known) for name in unknown[:MAX_WARNINGS])

    def _warning(self, name: str, known: Set[str]) -> str:
        near = difflib.get_close_matches(name[:64], known, n=1)
        return f"ignored field {go_quote(self._written[name][:64])}" + (f', did you mean "{near[0]}"?' if near else "")

    def text(self, *names: str) -> str:
        """The first of the fields ``names`` that is not empty."""
        return next(filter(None, [self._typed(name, str, "string") for name in names]), "")

    def flag(self, name: str) -> bool | None:
        value: bool | None = self._typed(name, bool, "bool")
        return value

    def number(self, name: str) -> float | None:
        value = self.raw(name)
        if value is not None and type(value) not in (int, float):
            self.refuse(name, value, "float64")
        return None if value is None else float(value)

    def whole(self, name: str) -> int:
        return self._whole(name, self.raw(name)) or 0

    def wholes(self, name: str, go_type: str = "[]int") -> tuple[int, ...] | None:
        items = self._typed(name, list, go_type)
        return None if items is None else tuple(self._whole(name, item) or 0 for item in items)

    def object(self, name: str, go_type: str = "map[string]interface {}") -> dict[str, Any]:
        return self._typed(name, dict, go_type) or {}

    def texts(self, name: str) -> tuple[str, ...]:
        items = self._typed(name, list, "[]string") or []
        for item in items:
            if not isinstance(item, str | None):
                self.refuse(name, item, "string")
        return tuple(item or "" for item in items)

    def text_map(self, name: str) -> dict[str, str]:
        found = self._typed(name, dict, "map[string]string") or {}
        for item in found.values():
            if not isinstance(item, str | None):
                self.refuse(name, item, "string")
        return {key: item or "" for key, item in found.items()}

    def struct(self, name: str, go_type: str) -> Fields:
        """A nested object; errors in it name its full path."""
        return self.below(name, self.raw(name), go_type)

    def structs(self, name: str, go_type: str) -> list[Fields]:
        """A list of nested objects."""
        return [self.below(name, item, go_type) for item in self.items(name, f"[]{go_type}")]

    def items(self, name: str, go_type: str) -> list[Any]:
        """A list, its items unchecked."""
        return self._typed(name, list, go_type) or []

    def below(self, name: str, value: Any, go_type: str) -> Fields:
        """The object ``value``, which was found below the field ``name``."""
        return Fields(value, self._struct, self._join(name), go_type)

    def blobs(self, name: str, go_type: str = "[]api.ImageData") -> tuple[bytes, ...]:
        """A list of base64 texts, decoded to bytes."""
        items = self._typed(name, list, go_type) or []
        for item in items:
            if not isinstance(item, str):
                self.refuse(name, item, go_type.removeprefix("[]"))
        return tuple(from_base64(item) for item in items)

    def _typed(self, name: str, kind: type, go_type: str) -> Any:
        value = self.raw(name)
        if value is not None and type(value) is not kind:
            self.refuse(name, value, go_type)
        return value

    def _whole(self, name: str, value: Any) -> int | None:
        if value is not None and (type(value) is not int or not -(1 << 63) <= value < 1 << 63):
            self.refuse(name, value, "int")
        return value

    def refuse(self, name: str, value: Any, go_type: str) -> NoReturn:
        """Raise BadRequest: the value of the field ``name`` has the wrong type."""
        kind = _kind(value)
        if kind == "number" and go_type == "int":
            kind = f"number {value}"[:40]
        path = self._join(name)
        text = f"json: cannot unmarshal {kind} into Go struct field {self._struct}.{path} of type {go_type}"
        raise BadRequest(text, field=path)

    def _join(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case list():
            return "array"
        case Mapping():
            return "object"
        case None:
            return "null"
        case _:
            return "number"


def from_base64(text: str) -> bytes:
    """Decode RFC 4648 base64 with padding; line breaks are allowed. Raises BadRequest."""
    data = text.encode("utf-8")
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r", b"").replace(b"\n", b"")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        good = _BASE64.match(data)
        raise BadRequest(f"illegal base64 data at input byte {good.end() if good else 0}") from None


def nanoseconds(seconds: float) -> int:
    """Seconds as a Go duration; infinity becomes the longest duration, about 292 years."""
    return min(round(seconds * 1e9), _MAX_NANOSECONDS) if seconds < MAX_DURATION else _MAX_NANOSECONDS


def utc_now() -> str:
    """Now, in UTC, as ``2026-08-01T10:00:00.123456789Z``."""
    return utc(time.time_ns())


def utc(unix_ns: int) -> str:
    """A time in Unix nanoseconds, in UTC."""
    seconds, fraction = divmod(unix_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}{_fraction(fraction)}Z"


def local(unix_seconds: float) -> str:
    """A time in Unix seconds in local time with its offset (``Z`` for zero); infinity becomes 292 years from now."""
    if unix_seconds >= MAX_DURATION:
        unix_seconds = time.time() + MAX_DURATION
    seconds, rest = divmod(unix_seconds, 1)
    moment = datetime.fromtimestamp(seconds, UTC).astimezone()
    offset = f"{moment:%z}"
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}"
    # A float holds a present-day time to the microsecond.
    return f"{moment:%Y-%m-%dT%H:%M:%S}{_fraction(int(rest * 1e6) * 1000)}{zone}"


def _fraction(nanoseconds: int) -> str:
    return f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
