"""The values of Go templates in Python: truth, equality, order, byte-wise strings, and printing.

None is nil (and a missing key); bool, int, float and str are themselves; list and tuple are slices; a Mapping is a map;
``GoStruct`` has fixed fields. Go strings are bytes: an incomplete character is represented by surrogate escapes.

Printing follows ``print``, ``println``, ``printf`` and the output of actions. Any verb formats any value; a mismatch is
shown as in Go (``%!d(string=x)``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ollama_nb.api.encode import go_quote


class TemplateFailure(Exception):
    """An invalid operation in a template. The interpreter adds the line number and raises TemplateError."""


class Stringer:
    """A value that prints by its own ``String`` method."""

    __slots__ = ()

    def go_string(self) -> str:
        raise NotImplementedError


class Encoded:
    """A value with its own conversion to JSON."""

    __slots__ = ()

    def json_value(self) -> Any:
        """Return JSON data."""
        raise NotImplementedError


class GoStruct:
    """A Go struct. Accessing an unknown field is an error. ``methods`` take no arguments and return text."""

    __slots__ = ("fields", "methods", "type_name")

    def __init__(
        self, type_name: str, fields: Mapping[str, Any], methods: Mapping[str, Callable[[], str]] | None = None
    ) -> None:
        self.type_name = type_name
        self.fields = fields
        self.methods = methods or {}


def truth(value: Any) -> bool:
    """Go's truth: false, 0, "", nil and empty containers are false; a struct is true."""
    return True if isinstance(value, GoStruct) else bool(value)


def is_slice(value: Any) -> bool:
    return isinstance(value, list | tuple | bytes)


def type_name(value: Any) -> str:
    """Return the name of the Go type, for error messages."""
    for python, name in _TYPE_NAMES:
        if isinstance(value, python):
            return name
    return value.type_name if isinstance(value, GoStruct) else type(value).__name__


_TYPE_NAMES: tuple[tuple[Any, str], ...] = (
    (type(None), "<nil>"),
    (bool, "bool"),
    (int, "int"),
    (float, "float64"),
    (str, "string"),
    (bytes, "[]uint8"),
    ((list, tuple), "[]interface {}"),
    (Mapping, "map[string]interface {}"),
)

_BASIC = {bool: "bool", int: "int", float: "float", str: "string"}


def basic_kind(value: Any) -> str:
    """Return ``bool``, ``int``, ``float``, ``string``, or empty for other types."""
    return _BASIC.get(type(value), "")


def equal(first: Any, second: Any) -> bool:
    """Go's ``eq`` of two values. Raises TemplateFailure for types that Go does not compare."""
    if first is None or second is None:
        return first is second
    kind = basic_kind(first)
    if kind != basic_kind(second):
        raise TemplateFailure(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}")
    if not kind:
        raise TemplateFailure(f"non-comparable type {type_name(first)}")
    return bool(first == second)


def less(first: Any, second: Any) -> bool:
    """Go's ``lt``. Strings are ordered by their bytes."""
    kind = basic_kind(first)
    if kind in ("", "bool") or basic_kind(second) in ("", "bool"):
        raise TemplateFailure(f"invalid type for comparison: {type_name(first)} and {type_name(second)}")
    if kind != basic_kind(second):
        raise TemplateFailure(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}")
    if kind == "string":
        return to_bytes(first) < to_bytes(second)
    return bool(first < second)


def sorted_items(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return the items of a map in the order in which Go templates iterate."""
    return iter(sorted(value.items(), key=lambda item: to_bytes(str(item[0]))))


def to_bytes(text: str) -> bytes:
    """Return the bytes of a Go string."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate in the data
        return text.encode("utf-8", "replace")


def from_bytes(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def valid_text(text: str) -> str:
    """Return valid text: surrogate escapes that form a character are joined, others become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return to_bytes(text).decode("utf-8", "replace")
    return text


MAX_WIDTH = 1_000_000  # of a formatted value, in characters, as in Go
MAX_TEXT = 4 << 20  # characters of a joined text


def joined(parts: Iterable[str], separator: str = "") -> str:
    """Join texts. Raises TemplateFailure beyond MAX_TEXT characters: a short template can request long texts."""
    out: list[str] = []
    size = 0
    for part in parts:
        size += len(part) + len(separator)
        if size > MAX_TEXT:
            raise TemplateFailure("a text is too long")
        out.append(part)
    return separator.join(out)


def show(value: Any) -> str:
    """Format a value as ``%v`` does."""
    if isinstance(value, str):
        return value
    if isinstance(value, Stringer):
        return value.go_string()
    return _composite(value, show) or _scalar(value)


def show_action(value: Any) -> str:
    """Format a value as ``{{ value }}`` does."""
    return "<no value>" if value is None else show(value)


def sprint(values: Sequence[Any]) -> str:
    """Go's Sprint: a space only between two operands of which neither is a string."""
    return joined(_spaced(values))


def _spaced(values: Sequence[Any]) -> Iterator[str]:
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            yield " "
        yield show(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return general(value)
    return str(value)


def _composite(value: Any, each: Any) -> str:
    """Format a slice, map or struct, its parts by ``each``. Return an empty text for other values."""
    if isinstance(value, GoStruct):
        return "{" + joined(map(each, value.fields.values()), " ") + "}"
    if isinstance(value, Mapping):
        return "map[" + joined((f"{each(key)}:{each(item)}" for key, item in sorted_items(value)), " ") + "]"
    if is_slice(value):
        return "[" + joined(map(each, value), " ") + "]"
    return ""


def general(value: float, precision: int = -1, exponent: str = "e") -> str:
    """Go's ``%g``: the shortest digits that denote the value, or ``precision`` digits."""
    if value != value or value in (float("inf"), float("-inf")):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(str(value), "NaN")
    if value == 0:
        return "-0" if str(value).startswith("-") else "0"
    number = Decimal(repr(value)) if precision < 0 else Decimal(f"{value:.{max(precision, 1) - 1}e}")
    sign, digits, power = number.as_tuple()
    text = "".join(map(str, digits)).rstrip("0") or "0"
    first = len(digits) + int(power) - 1  # the power of ten of the first digit
    limit = 6 if precision < 0 else max(precision, 1)
    if precision >= 0 and limit > len(text) >= first + 1:
        limit = len(text)
    minus = "-" if sign else ""
    if first < -4 or first >= limit:
        mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
        return f"{minus}{mantissa}{exponent}{'-' if first < 0 else '+'}{abs(first):02d}"
    if first < 0:
        return f"{minus}0.{'0' * (-first - 1)}{text}"
    if len(text) <= first + 1:
        return minus + text.ljust(first + 1, "0")
    return f"{minus}{text[: first + 1]}.{text[first + 1 :]}"


@dataclass(slots=True)
class _Spec:
    """One ``%`` directive."""

    flags: str = ""
    width: int | None = None
    precision: int | None = None

    def pad(self, text: str, *, zeros: bool = False) -> str:
        missing = (self.width or 0) - len(text)
        if missing <= 0:
            return text
        if "-" in self.flags:
            return text + " " * missing
        if zeros and "0" in self.flags:
            sign = 1 if text[:1] in ("+", "-", " ") else 0
            return text[:sign] + "0" * missing + text[sign:]
        return " " * missing + text


_DIRECTIVE = re.compile(
    r"%(?P<flags>[-+# 0]*)(?P<at>(?:\[[^\]]*\])?)(?P<width>\*|\d+)?"
    r"(?:(?P<dot>\.)(?P<at2>(?:\[[^\]]*\])?)(?P<precision>\*|\d+)?)?(?P<at3>(?:\[[^\]]*\])?)(?P<verb>.?)",
    re.DOTALL,
)


def sprintf(template: str, values: Sequence[Any]) -> str:
    """Go's Sprintf over template values."""
    return _Printf(values).run(template)


class _Printf:
    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values
        self._next = 0
        self._reordered = False
        self._good = True

    def run(self, template: str) -> str:
        return joined(self._parts(template))

    def _parts(self, template: str) -> Iterator[str]:
        at = 0
        while (percent := template.find("%", at)) >= 0:
            yield template[at:percent]
            match = _DIRECTIVE.match(template, percent)
            assert match is not None  # every part of the pattern may be empty
            yield self._directive(match)
            at = match.end()
        yield template[at:]
        if not self._reordered and self._next < len(self._values):
            yield f"%!(EXTRA {joined(map(_typed, self._values[self._next :]), ', ')})"

    def _directive(self, match: re.Match[str]) -> str:
        spec, verb, notes = _Spec(match["flags"]), match["verb"], []
        self._good = True
        self._index(match["at"])
        spec.width, note = self._size(match["width"], "WIDTH")
        notes.append(note)
        if spec.width is not None and spec.width < 0:
            spec.width, spec.flags = -spec.width, spec.flags + "-"
        if match["dot"]:
            self._index(match["at2"])
            spec.precision, note = self._size(match["precision"] or "0", "PREC")
            if spec.precision is not None and spec.precision < 0:
                spec.precision = None
            notes.append(note)
        self._index(match["at3"])
        if not verb:
            return "".join(notes) + "%!(NOVERB)"
        if verb == "%":
            return "".join(notes) + "%"
        if not self._good:
            return "".join(notes) + f"%!{verb}(BADINDEX)"
        if self._next >= len(self._values):
            return "".join(notes) + f"%!{verb}(MISSING)"
        self._next += 1
        return "".join(notes) + format_value(spec, verb, self._values[self._next - 1])

    def _index(self, text: str | None) -> None:
        if not text:
            return
        self._reordered = True
        number = int(text[1:-1]) if re.fullmatch(r"\[[0-9]{1,9}\]", text) else 0
        if 1 <= number <= len(self._values):
            self._next = number - 1
        else:
            self._good = False

    def _size(self, text: str | None, name: str) -> tuple[int | None, str]:
        """Return a width or precision, and Go's note if it is invalid."""
        if text is None:
            return None, ""
        if text != "*":
            size = int(text) if len(text) < 10 else MAX_WIDTH + 1
        else:
            value = self._values[self._next] if self._next < len(self._values) else None
            self._next += self._next < len(self._values)
            if type(value) is not int:
                return None, f"%!(BAD{name})"
            size = value
        return (size, "") if abs(size) <= MAX_WIDTH else (None, f"%!(BAD{name})")


def format_value(spec: _Spec, verb: str, value: Any) -> str:
    """Format one value with one verb; slices, maps and structs part by part, as in Go."""
    if verb == "v" and "+" in spec.flags:  # it requests field names, not signs
        spec = _Spec(spec.flags.replace("+", ""), spec.width, spec.precision)
    if verb == "T":
        return spec.pad(type_name(value))
    if isinstance(value, Stringer) and verb in "vsqxX":
        value = value.go_string()
    if isinstance(value, str):
        return _string(spec, verb, value)
    whole = _composite(value, lambda part: format_value(spec, verb, part))
    if whole:
        return whole
    if value is None:
        return spec.pad("<nil>") if verb == "v" else f"%!{verb}(<nil>)"
    if isinstance(value, bool):
        return spec.pad(_scalar(value)) if verb in "tv" else _mismatch(verb, value)
    if isinstance(value, float):
        return _float(spec, verb, value)
    return _integer(spec, verb, value)


def _typed(value: Any) -> str:
    return "<nil>" if value is None else f"{type_name(value)}={show(value)}"


def _mismatch(verb: str, value: Any) -> str:
    return f"%!{verb}({_typed(value)})"


def _string(spec: _Spec, verb: str, value: str) -> str:
    if verb in "xX":
        data = to_bytes(value if spec.precision is None else from_bytes(to_bytes(value)[: spec.precision]))
        text = data.hex(" ") if " " in spec.flags else data.hex()
        if "#" in spec.flags and data:
            text = " ".join("0x" + part for part in text.split(" "))
        return spec.pad(text.upper() if verb == "X" else text, zeros=True)
    if verb not in "vsq":
        return _mismatch(verb, value)
    if spec.precision is not None:
        value = value[: spec.precision]
    if verb == "q" or (verb == "v" and "#" in spec.flags):
        raw = "#" in spec.flags and verb == "q" and "`" not in value
        value = f"`{value}`" if raw else go_quote(value, ascii_only="+" in spec.flags)
    return spec.pad(value, zeros=True)


_BASES = {"b": ("b", "0b"), "o": ("o", "0"), "O": ("o", "0o"), "x": ("x", "0x"), "X": ("X", "0X")}


def _integer(spec: _Spec, verb: str, value: int) -> str:
    if verb in "cqU":
        return _rune(spec, verb, value)
    if verb in "dv":
        text = str(abs(value))
    elif verb in _BASES:
        letter, prefix = _BASES[verb]
        text = format(abs(value), letter)
    else:
        return _mismatch(verb, value)
    if spec.precision is not None:
        text = text.rjust(spec.precision, "0") if spec.precision or value else ""
    elif "0" in spec.flags and "-" not in spec.flags and spec.width:
        text = text.rjust(spec.width - (value < 0 or "+" in spec.flags or " " in spec.flags), "0")
    if verb in _BASES and ("#" in spec.flags or verb == "O"):
        text = text if verb == "o" and text.startswith("0") else prefix + text
    sign = "-" if value < 0 else "+" if "+" in spec.flags else " " if " " in spec.flags else ""
    return spec.pad(sign + text)


def _rune(spec: _Spec, verb: str, value: int) -> str:
    letter = chr(value) if 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000 else "\ufffd"
    if verb == "c":
        return spec.pad(letter, zeros=True)
    if verb == "q":
        return spec.pad(go_quote(letter, "'"), zeros=True)
    digits = max(4, spec.precision or 0)
    text = f"U+{value & 0xFFFFFFFFFFFFFFFF:0{digits}X}"
    return spec.pad(f"{text} '{letter}'" if "#" in spec.flags and letter.isprintable() else text)


def _float(spec: _Spec, verb: str, value: float) -> str:
    finite = value == value and abs(value) != float("inf")
    if verb in "eEfF":
        precision = 6 if spec.precision is None else spec.precision
        text = f"{value:.{precision}{verb}}" if finite else general(value)
    elif verb in "gGv":
        text = general(value, -1 if spec.precision is None else spec.precision, "E" if verb == "G" else "e")
    elif verb in "xX" and finite:
        text = _hex_float(value) if verb == "x" else _hex_float(value).upper()
    else:
        return _mismatch(verb, value)
    if "+" in spec.flags and text[0] not in "+-":
        text = "+" + text
    elif "+" not in spec.flags and text[0] == "+":
        text = text if not finite else text[1:]
    if " " in spec.flags and text[0] not in "+-":
        text = " " + text
    return spec.pad(text, zeros=finite)


def _hex_float(value: float) -> str:
    sign, digits = ("-", value.hex()[3:]) if value.hex().startswith("-") else ("", value.hex()[2:])
    mantissa, _, power = digits.partition("p")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{sign}0x{mantissa}p{power[0]}{int(power[1:]):02d}"


def html_escape(text: str) -> str:
    return text.translate(_HTML)


_HTML = str.maketrans({'"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"})


def js_escape(text: str) -> str:
    return "".join(_js(letter) for letter in text)


_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D"}


def _js(letter: str) -> str:
    if letter in _JS:
        return _JS[letter]
    if ord(letter) < 0x20 or (ord(letter) >= 0x80 and not letter.isprintable()):
        return f"\\u{ord(letter):04X}"
    return letter
