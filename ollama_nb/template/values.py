"""What Go templates compute with, as Python values: kinds, truth, equality, order, and byte-wise strings.

None is nil (and an absent key), bool/int/float/str are themselves, list and tuple are slices, a Mapping is a map,
``Struct`` has fixed fields. Go strings are bytes: half a character is carried as surrogate escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class TemplateFailure(Exception):
    """Something that a template may not do; the interpreter adds the line."""


class Stringer:
    """A value with a ``String`` method of its own: that is how it prints."""

    __slots__ = ()

    def go_string(self) -> str:
        raise NotImplementedError


class Encoded:
    """A value whose JSON is not simply that of its parts."""

    __slots__ = ()

    def json_value(self) -> Any:
        """Plain data, ready to encode."""
        raise NotImplementedError


class Struct:
    """A Go struct: an absent field is an error. ``methods`` take no arguments and give text."""

    __slots__ = ("fields", "methods", "type_name")

    def __init__(
        self, type_name: str, fields: Mapping[str, Any], methods: Mapping[str, Callable[[], str]] | None = None
    ) -> None:
        self.type_name = type_name
        self.fields = fields
        self.methods = methods or {}


def truth(value: Any) -> bool:
    """Go's truth: false, 0, "", nil and what is empty are false; a struct is true."""
    return True if isinstance(value, Struct) else bool(value)


def is_slice(value: Any) -> bool:
    return isinstance(value, list | tuple | bytes)


def type_name(value: Any) -> str:
    """The Go type that an error message names."""
    for python, name in _TYPE_NAMES:
        if isinstance(value, python):
            return name
    return value.type_name if isinstance(value, Struct) else type(value).__name__


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
    """``bool``, ``int``, ``float``, ``string``, or empty for what Go cannot order."""
    return _BASIC.get(type(value), "")


def equal(first: Any, second: Any) -> bool:
    """Go's ``eq`` of two values. Raises TemplateFailure for values that Go does not compare."""
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
    """A map in the order in which Go templates walk it."""
    return iter(sorted(value.items(), key=lambda item: to_bytes(str(item[0]))))


def to_bytes(text: str) -> bytes:
    """The bytes of a Go string."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that came in as data
        return text.encode("utf-8", "replace")


def from_bytes(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def settle(text: str) -> str:
    """Text for the outside: halves that met are whole again, what is still half becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return to_bytes(text).decode("utf-8", "replace")
    return text
