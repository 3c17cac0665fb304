"""JSON Schemas, looked over before native code sees them: bounded, and refused by keyword where they cannot be kept.

Rule: what comes out of here compiles within moments and says no less than what went in. Three parts are said more
narrowly than their standards: dates have a year from 1 and times no leap second, so that parsers accept every reply;
objects that list properties have no others (``closing.py``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import unquote

from ollama_nb.engine.closing import close_objects
from ollama_nb.engine.patterns import read_regex
from ollama_nb.engine.recursion import endless
from ollama_nb.errors import BadRequest

MAX_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_PARTS = 5000
"""Schemas within a schema, required names, and lists and objects among the values of ``enum``."""
MAX_OPTIONAL = 400
"""Each optional property may come next: the parser's row holds about 2,000 ways on, four for each of them."""
MAX_PATTERNS = 8
"""On one value: all hold at once, so the states of their automata are multiplied."""
MAX_MULTIPLE = 10_000
"""An automaton for multiples has a state for each remainder."""
MAX_DIGITS = 18

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ONES = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")
_YEAR = r"^(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])-"
_NARROWED = {
    "date": _YEAR,
    "date-time": _YEAR + r"\d{2}-\d{2}[Tt]\d{2}:\d{2}:[0-5]",
    "time": r"^\d{2}:\d{2}:[0-5]",
}


def read_schema(text: str) -> dict[str, Any]:
    """Parse a schema and look it over. Raises BadRequest that names what cannot be kept."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise BadRequest(f"invalid format: a schema may be {MAX_BYTES >> 10} KiB of text at most")
    too_deep = BadRequest(f"invalid format: a schema may be nested {MAX_DEPTH} levels deep at most")
    try:
        schema = json.loads(text, parse_int=_integer, parse_constant=_no_number)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise BadRequest(f'invalid format: neither "json" nor a JSON Schema ({error})') from None
    if not isinstance(schema, dict):
        raise BadRequest('invalid format: expected "json" or a JSON Schema object')
    if depth(schema) > MAX_DEPTH:
        raise too_deep
    schema.pop("x-guidance", None)  # the compiler's own switches
    _Lint(schema).run()
    return schema


def depth(value: Any) -> int:
    """Levels of nesting, without recursion."""
    level, todo = 0, [value]
    while todo := [item for item in todo if isinstance(item, (dict, list)) and item]:
        level += 1
        todo = [child for item in todo for child in (item.values() if isinstance(item, dict) else item)]
    return level


class _Lint:
    """Looks at every schema within a schema once; what is of the wrong type is left for the compiler to name."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._seen: dict[int, dict[str, Any]] = {}
        self._patterns: dict[int, int] = {}
        self._parts = 0
        self._multiple = 1

    def run(self) -> None:
        todo: list[Any] = [self._root]
        while todo:
            schema = todo.pop()
            if not isinstance(schema, dict) or id(schema) in self._seen:
                continue
            self._seen[id(schema)] = schema
            todo += (inner for _, inner in _inner(schema))
            if (target := self._target(schema)) is not None:
                todo.append(target)
            self._look(schema)
        for schema in self._seen.values():
            if self._count_patterns(schema, 0) > MAX_PATTERNS:
                raise _refused("pattern", f"at most {MAX_PATTERNS} can hold for one value")
        if (reference := endless(self._seen.values(), self._target)) is not None:
            raise _refused("$ref", f'"{reference[:100]}" is required within itself without end; make it optional')
        close_objects(self._seen.values(), self._target)
        for schema in self._seen.values():
            _narrow(schema)

    def _look(self, schema: dict[str, Any]) -> None:
        required = _list(schema, "required")
        self._parts += 1 + len(required) + sum(isinstance(value, (dict, list)) for value in _list(schema, "enum"))
        if self._parts > MAX_PARTS:
            raise BadRequest(f"invalid format: a schema may have {MAX_PARTS} parts at most")
        names = {name for name in required if isinstance(name, str)}
        optional = [name for name in _dict(schema, "properties") if name not in names]
        if len(optional) > MAX_OPTIONAL:
            raise _refused(
                "properties", f'at most {MAX_OPTIONAL} of an object can be optional; list others in "required"'
            )
        if isinstance(pattern := schema.get("pattern"), str):
            _look_at_pattern("pattern", pattern)
        for pattern in _dict(schema, "patternProperties"):
            _look_at_pattern("patternProperties", pattern)
        if "multipleOf" in schema:
            self._look_at_multiple(schema["multipleOf"])
        _look_at_count(schema, names)

    def _look_at_multiple(self, value: Any) -> None:
        try:
            _, digits, _ = Decimal(str(value)).normalize().as_tuple()
        except InvalidOperation:
            return
        if isinstance(value, bool) or value <= 0:
            raise _refused("multipleOf", "it must be greater than 0")
        self._multiple = math.lcm(self._multiple, int("".join(map(str, digits))))
        if self._multiple > MAX_MULTIPLE:
            raise _refused("multipleOf", f"too many remainders; {MAX_MULTIPLE} are possible, over all its values")

    def _target(self, schema: dict[str, Any]) -> Any:
        """The schema that ``$ref`` points to, None without one; a missing place is for the compiler to name."""
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return None
        if reference != "#" and not reference.startswith("#/"):
            raise _refused("$ref", f'"{reference[:100]}" is not a place in this schema, such as "#/$defs/name"')
        place: Any = self._root
        for name in unquote(reference).split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(place, list):
                place = place[int(name)] if name.isdecimal() and int(name[:9]) < len(place) else None
            else:
                place = place.get(name) if isinstance(place, dict) else None
        return place

    def _count_patterns(self, schema: Any, level: int) -> int:
        """Most patterns that one value may have to match: of this schema and all that is said of the same value."""
        if not isinstance(schema, dict):
            return 0
        if id(schema) not in self._patterns:
            if level > 2 * MAX_DEPTH:
                raise _refused("$ref", f"at most {2 * MAX_DEPTH} may follow one another")
            self._patterns[id(schema)] = 0  # what refers to itself adds nothing
            count = ("pattern" in schema) + ("format" in schema)
            count += sum(self._count_patterns(part, level + 1) for part in _list(schema, "allOf"))
            for key in ("anyOf", "oneOf"):
                count += max((self._count_patterns(part, level + 1) for part in _list(schema, key)), default=0)
            count += self._count_patterns(self._target(schema), level + 1)
            self._patterns[id(schema)] = count
        return self._patterns[id(schema)]


def place_of(key: str, schema: dict[str, Any]) -> str:
    """Where a schema or one within it says ``key``, from the outside in: ``$.properties.name``; "$" if none does."""
    todo: list[tuple[str, Any]] = [("$", schema)]
    for place, part in todo:
        if isinstance(part, dict):
            if key in part:
                return place
            todo += ((place + step, inner) for step, inner in _inner(part))
    return "$"


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas directly within a schema, and the step to each."""
    for key in _MAPS:
        yield from ((f".{key}.{name}", part) for name, part in _dict(schema, key).items())
    for key in _LISTS:
        yield from ((f".{key}[{index}]", part) for index, part in enumerate(_list(schema, key)))
    for key in _ONES:
        yield f".{key}", schema.get(key)


def _look_at_pattern(key: str, pattern: str) -> None:
    try:
        read_regex(pattern)
    except BadRequest as error:
        raise _refused(key, error.message.partition(": ")[2]) from None


def _look_at_count(schema: dict[str, Any], required: set[str]) -> None:
    """A name that is free can be written twice and counts once for a parser, but twice for the constraint."""
    least = schema.get("minProperties")
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if isinstance(least, int) and least > len(required) + 1 and not closed:
        raise _refused("minProperties", "more than one property beside the required ones cannot be kept apart")


def _narrow(schema: dict[str, Any]) -> None:
    format = schema.get("format")
    if isinstance(format, str) and format in _NARROWED and isinstance(schema.get("allOf", []), list):
        schema["allOf"] = [*schema.get("allOf", []), {"pattern": _NARROWED[format]}]


def _dict(schema: dict[str, Any], key: str) -> dict[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}


def _list(schema: dict[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _refused(key: str, reason: str) -> BadRequest:
    return BadRequest(f"invalid format: {key}: {reason}")
