"""JSON bodies read as Go's decoder reads them, with its error texts; times as Go writes them.

Accepted as in Go: any content type, unknown fields, keys in any letter case, repeated keys (the last one wins), null
for a missing field, anything after the first value, bytes that are not valid UTF-8. Refused: NaN and infinities, deep
nesting, known fields of the wrong type, and more than the counts of :mod:`ollama_nb.server.limits`.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import UTC, datetime
from typing import Any, NoReturn

from ollama_nb.api.encode import go_quote
from ollama_nb.errors import BadRequest, RequestTooLarge
from ollama_nb.server import limits
from ollama_nb.server.dialects.images import EncodedImage, cut_images, put_images
from ollama_nb.server.limits import MAX_DEPTH, MIB
from ollama_nb.settings import MAX_DURATION

_PIECE = 256 << 10  # bytes that are searched at once: other threads wait meanwhile
_ERROR_WINDOW = 1 << 20  # characters that are searched to describe a syntax error
_MAX_DIGITS = 300  # longer integers are checked as floats first
_MAX_NANOSECONDS = (1 << 63) - 1  # Go's longest duration
_BLANK = re.compile(r"[ \t\r\n]*")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_WHOLE_STRINGS = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")


def decode(body: bytes | bytearray) -> Any:
    """The first JSON value of a body. Raises BadRequest with Go's error text.

    Large images are ``EncodedImage`` objects where the APIs have images. Call it in a worker thread for a large body:
    no step of it keeps the other threads waiting for long.
    """
    rest, images = cut_images(body)
    if len(rest) > limits.MAX_BODY:
        raise RequestTooLarge(f"request body too large: more than {limits.MAX_BODY // MIB} MiB without its images")
    _check_counts(rest)
    value = _decode(rest)
    return put_images(value, images) if images else value


def _check_counts(body: bytes | bytearray) -> None:
    """Refuse a body with too many values. The text in strings is only left out of the count if that matters."""
    if _exceeded(_count(body)) is None:
        return
    values = containers = members = 0
    for piece in _without_strings(body):
        more = _count(piece)
        values, containers, members = values + more[0], containers + more[1], members + more[2]
        if message := _exceeded((values, containers, members)):
            raise BadRequest(message)


def _count(text: bytes | bytearray) -> tuple[int, int, int]:
    """The numbers of values, of objects and arrays among them, and of members of objects."""
    containers = text.count(b"[") + text.count(b"{")
    return containers + text.count(b","), containers, text.count(b":")


def _exceeded(counts: tuple[int, int, int]) -> str | None:
    values, containers, members = counts
    if values > limits.MAX_VALUES:
        return f"request body holds more than {limits.MAX_VALUES} values"
    if containers > limits.MAX_CONTAINERS:
        return f"request body holds more than {limits.MAX_CONTAINERS} objects and arrays"
    if members > limits.MAX_MEMBERS:
        return f"request body holds more than {limits.MAX_MEMBERS} members of objects"
    return None


def _without_strings(body: bytes | bytearray) -> Iterator[bytes]:
    """The text between the strings, in pieces."""
    at = 0
    while at < len(body):
        found = _WHOLE_STRINGS.match(body, at, at + _PIECE)
        end = found.end() if found else at
        if end == at:  # a string that is longer than a piece, or has no end
            at = _end_of_string(body, at)
        else:
            yield _STRING.sub(b"", body[at:end])
            at = end


def _end_of_string(body: bytes | bytearray, start: int) -> int:
    """The position after the string whose first quotation mark is at ``start``."""
    end = start
    while (end := body.find(b'"', end + 1)) > 0:
        first = end
        while body[first - 1] == ord("\\"):
            first -= 1
        if (end - first) % 2 == 0:
            return end + 1
    return len(body)


def _decode(body: bytes | bytearray) -> Any:
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


_CONFUSED = {
    "text": ("content", "input"), "message": ("content",), "msg": ("content",), "body": ("content",),
    "image": ("images",), "args": ("arguments",), "params": ("parameters",), "schema": ("parameters", "input_schema"),
    "properties": ("parameters",),
}  # fmt: skip
"""Names that clients use for another one, with fields that they may mean; similar names are found without this."""


class Fields:
    """A JSON object read as the Go struct ``struct``; ``path`` leads to it from the outermost object.

    The struct's package is ``api`` if ``struct`` does not name it. Each method reads one field. A missing field gives
    an empty value, or None where the caller must see the difference; a field of the wrong type raises BadRequest, as
    does a list or an object with too many entries.

    ``ignored`` lists the fields that nothing has read, also those of the nested objects that were read by ``struct``,
    ``structs`` and ``below``.
    """

    __slots__ = ("_inner", "_is_open", "_known", "_parent", "_path", "_place", "_struct", "_values", "_warnings",
                 "_written")  # fmt: skip

    def __init__(self, value: Any, struct: str, path: str = "", go_type: str = "") -> None:
        package, _, self._struct = struct.rpartition(".")
        self._path = path
        if value is None:
            value = {}
        if not isinstance(value, dict):
            into = f"Go struct field {self._struct}.{path}" if path else "Go value"
            go_type = go_type or f"{package or 'api'}.{self._struct}"
            raise BadRequest(f"json: cannot unmarshal {_kind(value)} into {into} of type {go_type}", field=path)
        if len(value) > limits.MAX_FIELDS:
            raise _too_many(path or "the request body", limits.MAX_FIELDS, len(value), "fields")
        self._values = {key.casefold(): item for key, item in value.items() if item is not None}
        self._written = {key.casefold(): key for key in value}
        self._known: set[str] = set()
        self._parent: Fields | None = None
        self._place = ""
        self._inner: dict[str, Fields] = {}
        self._warnings: list[str] = []
        self._is_open = False

    @property
    def value(self) -> dict[str, Any]:
        """The object with its keys as the client wrote them, without fields that are null."""
        return {written: self._values[key] for key, written in self._written.items() if key in self._values}

    @property
    def where(self) -> str:
        """The place of this object in the body, such as ``messages[3].content[0]``; empty for the body itself."""
        outer = self._parent.where if self._parent else ""
        return f"{outer}.{self._place}" if outer else self._place

    def raw(self, name: str) -> Any:
        """The value as the client sent it; None for a missing field."""
        self._known.add(name)
        value = self._values.get(name)
        if isinstance(value, list | dict):
            self._check_entries(name, value)
        return value

    def _check_entries(self, name: str, value: list[Any] | dict[str, Any]) -> None:
        most = limits.MAX_ENTRIES.get(name, limits.MAX_OTHER_ENTRIES)
        if isinstance(value, list) and value and isinstance(value[0], int | float):
            most = limits.MAX_NUMBERS
        if len(value) > most:
            raise _too_many(self._join(name), most, len(value), "entries")

    def schema(self, name: str) -> Any:
        """The value as the client sent it, which is a JSON Schema or a part of it: it may not have too many values."""
        value = self.raw(name)
        left = limits.MAX_SCHEMA_VALUES
        inner = [value]
        while inner:
            item = inner.pop()
            if isinstance(item, list | dict):
                left -= len(item)
                if left < 0:
                    text = f"{self._join(name)}: a schema may hold {limits.MAX_SCHEMA_VALUES} values at most"
                    raise BadRequest(text, field=self._join(name))
                inner.extend(item if isinstance(item, list) else item.values())
        return value

    def __contains__(self, name: str) -> bool:
        return self.raw(name) is not None

    def accept(self, names: Set[str]) -> None:
        """These fields are known, although they have no effect: no warning names them."""
        self._known |= names

    def accept_all(self) -> None:
        """All fields are known: those of a JSON Schema, of which any may have a meaning."""
        self._is_open = True

    def warn(self, text: str) -> None:
        """Add a warning about this object."""
        self._warnings.append(text)

    def ignored(self, more: Set[str] = frozenset()) -> tuple[str, ...]:
        """The warnings about this object and those in it, and one for each field that has not been read so far.

        The fields ``more`` of this object are known. Warnings above ``limits.MAX_WARNINGS`` are only counted.
        """
        self.accept(more)
        found = list(self._found())
        shown = [fields._worded(text, name) for fields, text, name in found[: limits.MAX_WARNINGS]]
        left = len(found) - len(shown)
        return (*shown, *((f"{left} more warnings of this kind are left out",) if left else ()))

    def _found(self) -> Iterator[tuple[Fields, str, str]]:
        """What to warn about: the object, and a text or the name of an unknown field."""
        for text in self._warnings:
            yield self, text, ""
        if not self._is_open:
            for name in self._values:
                if name not in self._known:
                    yield self, "", name
        for inner in self._inner.values():
            yield from inner._found()

    def _worded(self, text: str, name: str) -> str:
        if name:
            near = [known for known in _CONFUSED.get(name, ()) if known in self._known]
            near = near or difflib.get_close_matches(name[:64], self._known, n=1)
            text = f"ignored field {go_quote(self._written[name][:64])}"
            text += f', did you mean "{near[0]}"?' if near else ""
        where = self.where
        return f"{where}: {text}" if where else text

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
        """A nested object; errors in it name its full path. The same object in each call."""
        return self._inner.get(name) or self.below(name, self.raw(name), go_type)

    def structs(self, name: str, go_type: str, list_type: str = "") -> list[Fields]:
        """A list of nested objects."""
        items = self.items(name, list_type or f"[]{go_type}")
        return [self.below(name, item, go_type, f"{name}[{at}]") for at, item in enumerate(items)]

    def items(self, name: str, go_type: str) -> list[Any]:
        """A list, its items unchecked."""
        return self._typed(name, list, go_type) or []

    def below(self, name: str, value: Any, go_type: str, place: str = "") -> Fields:
        """The object ``value``, which was found below the field ``name``, at ``place`` (default: it is that field)."""
        inner = Fields(value, self._struct, self._join(name), go_type)
        inner._parent, inner._place = self, place or name
        self._inner[inner._place] = inner
        return inner

    def blobs(self, name: str, go_type: str = "[]api.ImageData") -> tuple[bytes, ...]:
        """A list of base64 texts, decoded to bytes."""
        items = self._typed(name, list, go_type) or []
        for item in items:
            if not isinstance(item, str | EncodedImage):
                self.refuse(name, item, go_type.removeprefix("[]"))
        return tuple(map(from_base64, items))

    def blob(self, name: str) -> bytes:
        """A base64 text, decoded to bytes."""
        value = self.raw(name)
        return from_base64(value if isinstance(value, EncodedImage) else self.text(name))

    def _typed(self, name: str, kind: type, go_type: str) -> Any:
        value = self.raw(name)
        if kind is str and isinstance(value, EncodedImage):
            value = value.text()
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
        case str() | EncodedImage():
            return "string"
        case list():
            return "array"
        case Mapping():
            return "object"
        case None:
            return "null"
        case _:
            return "number"


def _too_many(what: str, most: int, found: int, kind: str) -> BadRequest:
    return BadRequest(f"{what} may have {most} {kind} at most, but has {found}", field=what)


def from_base64(text: str | EncodedImage) -> bytes:
    """Decode RFC 4648 base64 with padding; line breaks are allowed. Raises BadRequest."""
    if isinstance(text, EncodedImage):
        if not text.head:
            return text.data
        text = text.text()
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
