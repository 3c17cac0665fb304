"""Check and prepare a JSON Schema before native code compiles it.

``parse_schema`` refuses, by keyword, schemas that are too large or cannot be compiled exactly. The prepared schema
compiles within moments and allows no reply that the original forbids. It is narrower than the standards in four points:
formats of strings are bounded patterns that common parsers accept (``value_formats.py``), ``\\d`` means 0-9, integers
and numbers within bounds have a limited number of digits, and objects that list their properties have no others
(``close_objects``).

All functions here are pure.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import unquote

from ollama_nb.engine.grammars import ascii_digits, find_regex_problem
from ollama_nb.engine.value_formats import FORMATS, LIMITS
from ollama_nb.errors import BadRequest

MAX_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_PARTS = 5000  # subschemas, required names, and lists and objects among the values of "enum"
MAX_OPTIONAL = 400
"""Optional properties of an object: each may come next, and one row of the parser has space for about 2,000 items, four
for each property."""
MAX_PATTERNS = 8  # on one value: all hold together, so that the states of their automata multiply
MAX_MULTIPLE = 10_000  # the automaton for "multipleOf" has a state for each remainder
MAX_DIGITS = 18
MAX_PATH = 300  # characters of a path in an error
MAX_SEARCH = 100  # subschemas compiled one by one to find the place of an error

Schema = dict[str, Any]
Resolve = Callable[[Schema], Any]
"""Returns the schema that the ``$ref`` of a schema refers to, None without one."""

_TYPES = ("object", "array", "string", "number", "boolean", "null")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ONES = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")


def parse_schema(text: str) -> Schema:
    """Parse, check and prepare a JSON Schema. Raises BadRequest that names the keyword at fault."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise BadRequest(f"invalid format: a schema may be {MAX_BYTES >> 10} KiB of text at most")
    too_deep = BadRequest(f"invalid format: a schema may be nested {MAX_DEPTH} levels deep at most")
    try:
        schema = json.loads(text, parse_int=_integer, parse_constant=_not_a_number)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise BadRequest(f'invalid format: neither "json" nor a JSON Schema ({error})') from None
    if not isinstance(schema, dict):
        raise BadRequest('invalid format: expected "json" or a JSON Schema object')
    if depth(schema) > MAX_DEPTH:
        raise too_deep
    schema.pop("x-guidance", None)  # options of the compiler itself
    _Checker(schema).run()
    return schema


def depth(value: Any) -> int:
    """Return the levels of nesting of a JSON value, without recursion."""
    level, todo = 0, [value]
    while todo := [item for item in todo if isinstance(item, (dict, list)) and item]:
        level += 1
        todo = [child for item in todo for child in (item.values() if isinstance(item, dict) else item)]
    return level


def find_keyword(key: str, schema: Schema) -> str:
    """Return the path of the outermost schema with the keyword ``key``: ``$.properties.name``; "$" if none has it."""
    todo: list[tuple[str, Any]] = [("$", schema)]
    for path, part in todo:
        if isinstance(part, dict):
            if key in part:
                return path
            todo += ((path + step, inner) for step, inner in _subschemas(part))
    return "$"


def find_innermost(schema: Schema, error_of: Callable[[Schema], str], error: str) -> tuple[str, str]:
    """Return the error of the innermost schema that does not compile by itself, and its path.

    ``error_of`` compiles a schema; ``error`` is that of ``schema`` itself. At most ``MAX_SEARCH`` schemas are compiled.
    Schemas that refer to other places than definitions are not searched: alone, they would lack these places.
    """
    shared: Schema = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    if _refers_elsewhere(schema):
        return error, "$"
    tries, path, todo = 0, "$", list(_subschemas(schema))
    while todo and tries < MAX_SEARCH:
        step, part = todo.pop(0)
        if not isinstance(part, dict):
            continue
        tries += 1
        if found := error_of({**shared, **part}):
            error, path, todo = found, path + step, list(_subschemas(part))
    return error, path


def _refers_elsewhere(schema: Schema) -> bool:
    todo: list[Any] = [schema]
    for part in todo:
        if isinstance(part, dict):
            reference = part.get("$ref", "#/$defs/")
            if not str(reference).startswith(("#/$defs/", "#/definitions/")):
                return True
            todo += (inner for _, inner in _subschemas(part))
    return False


class _Checker:
    """Visits every subschema once. Values of the wrong type are left to the compiler, which names them."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._seen: dict[int, Schema] = {}
        self._patterns: dict[int, int] = {}
        self._parts = 0
        self._multiple = 1

    def run(self) -> None:
        todo: list[tuple[str, Any]] = [("$", self._root)]
        while todo:
            path, schema = todo.pop()
            if not isinstance(schema, dict) or id(schema) in self._seen:
                continue
            self._seen[id(schema)] = schema
            todo += ((path + step, inner) for step, inner in _subschemas(schema))
            try:
                target = self._resolve(schema)
                self._check(schema)
            except BadRequest as error:
                raise BadRequest(f"{error.message} (at {path[:MAX_PATH]})") from None
            if target is not None:
                todo.append((f"$.{str(schema['$ref'])[2:].replace('/', '.')}".rstrip("."), target))
        for schema in self._seen.values():
            if self._count_patterns(schema, 0) > MAX_PATTERNS:
                raise _refused("pattern", f"at most {MAX_PATTERNS} can hold for one value")
        if (reference := find_infinite_reference(self._seen.values(), self._resolve)) is not None:
            raise _refused("$ref", f'"{reference[:100]}" is required within itself without end; make it optional')
        close_objects(self._seen.values(), self._resolve)
        combined = find_combined(self._seen.values(), self._resolve)
        for schema in self._seen.values():
            _replace_format(schema)
            _replace_digit_classes(schema)
            if id(schema) not in combined:
                _limit_digits(schema)

    def _check(self, schema: Schema) -> None:
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
            _check_pattern("pattern", pattern)
        for pattern in _dict(schema, "patternProperties"):
            _check_pattern("patternProperties", pattern)
        if "multipleOf" in schema:
            self._check_multiple(schema["multipleOf"])
        _check_min_properties(schema, names)

    def _check_multiple(self, value: Any) -> None:
        try:
            _, digits, _ = Decimal(str(value)).normalize().as_tuple()
        except InvalidOperation:
            return
        if isinstance(value, bool) or value <= 0:
            raise _refused("multipleOf", "it must be greater than 0")
        self._multiple = math.lcm(self._multiple, int("".join(map(str, digits))))
        if self._multiple > MAX_MULTIPLE:
            raise _refused("multipleOf", f"too many remainders; {MAX_MULTIPLE} are possible, over all its values")

    def _resolve(self, schema: Schema) -> Any:
        """Return the schema that ``$ref`` refers to, None without one or where the place does not exist.

        The compiler reports missing places.
        """
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
        """Return the most patterns that one value may have to match: of this schema and of those combined with it."""
        if not isinstance(schema, dict):
            return 0
        if id(schema) not in self._patterns:
            if level > 2 * MAX_DEPTH:
                raise _refused("$ref", f"at most {2 * MAX_DEPTH} may follow one another")
            self._patterns[id(schema)] = 0  # a reference to the schema itself adds nothing
            count = ("pattern" in schema) + ("format" in schema)
            count += sum(self._count_patterns(part, level + 1) for part in _list(schema, "allOf"))
            for key in ("anyOf", "oneOf"):
                count += max((self._count_patterns(part, level + 1) for part in _list(schema, key)), default=0)
            count += self._count_patterns(self._resolve(schema), level + 1)
            self._patterns[id(schema)] = count
        return self._patterns[id(schema)]


def _subschemas(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly within a schema, each with the step of its path."""
    for key in _MAPS:
        yield from ((f".{key}.{name}", part) for name, part in _dict(schema, key).items())
    for key in _LISTS:
        yield from ((f".{key}[{index}]", part) for index, part in enumerate(_list(schema, key)))
    for key in _ONES:
        yield f".{key}", schema.get(key)


def _check_pattern(key: str, pattern: str) -> None:
    if reason := find_regex_problem(pattern):
        raise _refused(key, reason)


def _check_min_properties(schema: Schema, required: set[str]) -> None:
    """Refuse a count of free names: the model can write one name twice, which counts once for a parser."""
    least = schema.get("minProperties")
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if isinstance(least, int) and least > len(required) + 1 and not closed:
        raise _refused("minProperties", "more than one property besides the required ones cannot be kept apart")


def _types(schema: Schema) -> set[str]:
    """Return the types that a schema names; all types if it names none."""
    kind = schema.get("type", _TYPES)
    return set(map(str, kind if isinstance(kind, (list, tuple)) else [kind]))


def unknown_formats(schema: Any) -> list[str]:
    """Return the formats of strings that constrain nothing, each once, in their order."""
    found: dict[str, None] = {}
    todo = [schema]
    for part in todo:
        if len(todo) > 2 * MAX_PARTS:  # the schema is refused later
            break
        if isinstance(part, dict):
            todo += (inner for _, inner in _subschemas(part))
            name = part.get("format")
            if isinstance(name, str) and name not in FORMATS and "string" in _types(part):
                found[name] = None
    return list(found)


def _replace_format(schema: Schema) -> None:
    """Put a pattern in place of a format; a format without a pattern is an annotation, as in JSON Schema."""
    if not isinstance(schema.get("format"), str):
        return
    pattern = FORMATS.get(schema.pop("format"))
    if pattern is None or "string" not in _types(schema):
        return
    pattern = f"^(?:{pattern})$"
    if "pattern" not in schema:
        schema["pattern"] = pattern
    elif isinstance(schema.get("allOf", []), list):
        schema["allOf"] = [*schema.get("allOf", []), {"pattern": pattern}]


def _replace_digit_classes(schema: Schema) -> None:
    """Let ``\\d`` in patterns mean 0 to 9, as in JSON Schema: the compiler would allow the digits of all scripts."""
    if isinstance(pattern := schema.get("pattern"), str):
        schema["pattern"] = ascii_digits(pattern)
    if isinstance(patterns := schema.get("patternProperties"), dict):
        schema["patternProperties"] = {ascii_digits(name): part for name, part in patterns.items()}


def _limit_digits(schema: Schema) -> None:
    """Bound integers, and numbers that have a bound: their grammar then ends each value exactly.

    Numbers without bounds keep exponents; ``json_watch.py`` limits their digits.
    """
    kinds = _types(schema)
    if not kinds & {"integer", "number"} or not {"const", "enum"}.isdisjoint(schema):
        return
    bounds = [schema[key] for key in _BOUNDS if key in schema]
    if not all(isinstance(bound, (int, float)) and abs(bound) < LIMITS.integer for bound in bounds):
        return
    if not ("integer" in kinds and "number" not in kinds) and not bounds and "multipleOf" not in schema:
        return
    if {"minimum", "exclusiveMinimum"}.isdisjoint(schema):
        schema["minimum"] = -LIMITS.integer
    if {"maximum", "exclusiveMaximum"}.isdisjoint(schema):
        schema["maximum"] = LIMITS.integer
    if "number" in kinds and all(round(bound, LIMITS.decimals) == bound for bound in bounds):
        schema.setdefault("multipleOf", LIMITS.step)
        _include_bounds(schema)


def _include_bounds(schema: Schema) -> None:
    """Move exclusive bounds by the smallest step: between 0 and 0.5, the compiler would allow an excluded 0."""
    for key, inclusive, step in (
        ("exclusiveMinimum", "minimum", LIMITS.step),
        ("exclusiveMaximum", "maximum", -LIMITS.step),
    ):
        bound = schema.get(key)
        if bound is not None and inclusive not in schema and abs(bound) <= LIMITS.exact:
            schema[inclusive] = round(schema.pop(key) + step, LIMITS.decimals)


def _dict(schema: Schema, key: str) -> Schema:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}


def _list(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _refused(key: str, reason: str) -> BadRequest:
    return BadRequest(f"invalid format: {key}: {reason}")


# Recursion without end


def find_infinite_reference(schemas: Iterable[Schema], resolve: Resolve) -> str | None:
    """Return the ``$ref`` of a schema that no finite text matches, such as an object that requires itself.

    A schema is finite when everything that it requires is finite; each schema found finite is propagated to the schemas
    that depend on it. Keywords of one schema are considered one by one, so that a combination of keywords without end
    may pass, but a finite schema is never refused.
    """
    found = list(schemas)
    dependents: defaultdict[int, list[Schema]] = defaultdict(list)
    for schema in found:
        for part in _dependencies(schema, resolve):
            dependents[id(part)].append(schema)
    finite: set[int] = set()
    todo = deque(reversed(found))  # subschemas come after the schemas that contain them
    while todo:
        schema = todo.popleft()
        if id(schema) not in finite and _is_finite(schema, resolve, finite):
            finite.add(id(schema))
            todo += dependents[id(schema)]
    return next((str(one["$ref"]) for one in found if id(one) not in finite and "$ref" in one), None)


def _dependencies(schema: Schema, resolve: Resolve) -> Iterator[Any]:
    """Yield the schemas that decide whether this one is finite."""
    yield resolve(schema)
    for key in ("allOf", "anyOf", "oneOf"):
        yield from _list(schema, key)
    yield from _required_members(schema)
    yield from _required_items(schema)


def _is_finite(schema: Schema, resolve: Resolve, finite: set[int]) -> bool:
    def ends(part: Any) -> bool:
        return not isinstance(part, dict) or id(part) in finite

    choices = (_list(schema, key) for key in ("anyOf", "oneOf"))
    return (
        ends(resolve(schema))
        and all(map(ends, _list(schema, "allOf")))
        and all(not some or any(map(ends, some)) for some in choices)
        and ("const" in schema or "enum" in schema or _some_type_is_finite(schema, ends))
    )


def _some_type_is_finite(schema: Schema, ends: Callable[[Any], bool]) -> bool:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if set(map(str, kinds)) - {"object", "array"}:
        return True  # strings and numbers are finite, and so is a schema without a type
    return ("object" in kinds and all(map(ends, _required_members(schema)))) or (
        "array" in kinds and all(map(ends, _required_items(schema)))
    )


def _required_members(schema: Schema) -> Iterator[Any]:
    """Yield the schemas of an object's required properties."""
    known = _dict(schema, "properties")
    for name in _list(schema, "required"):
        yield known.get(name, schema.get("additionalProperties")) if isinstance(name, str) else None


def _required_items(schema: Schema) -> Iterator[Any]:
    """Yield the schemas of an array's required items."""
    least = schema.get("minItems")
    first = _list(schema, "prefixItems")
    if isinstance(least, int) and least > 0:
        yield from first[:least]
        if least > len(first):
            yield schema.get("items")


# Closed objects

_APPLICATORS = ("allOf", "anyOf", "oneOf")
_CONDITIONS = ("not", "if", "then", "else")
_OBJECT_KEYWORDS = frozenset(
    {
        "properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames", "required",
        "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", *_CONDITIONS,
    }
)  # fmt: skip
_KEEPS_OPEN = frozenset(
    {
        "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames", "dependentSchemas",
        "dependencies", "$ref", *_APPLICATORS, *_CONDITIONS,
    }
)  # fmt: skip


def close_objects(schemas: Iterable[Schema], resolve: Resolve) -> None:
    """Add ``additionalProperties: false`` to objects that list their properties and do not mention others.

    JSON Schema allows further properties by default. But users who list properties want exactly these, small models
    that may add properties hardly ever stop, and Ollama's engine adds none. An object is closed only where a single
    schema describes it: of two that apply together, each would forbid what the other lists.
    """
    found = list(schemas)
    combined = find_combined(found, resolve)
    for schema in found:
        if id(schema) not in combined and _can_close(schema):
            schema["additionalProperties"] = False


def _can_close(schema: Schema) -> bool:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties or not _KEEPS_OPEN.isdisjoint(schema):
        return False
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    return (
        isinstance(least, int)
        and least <= len(properties)
        and isinstance(required, list)
        and all(name in properties for name in required if isinstance(name, str))
    )


def find_combined(schemas: Iterable[Schema], resolve: Resolve) -> set[int]:
    """Return the ids of the schemas that apply to a value together with others."""
    todo = [part for schema in schemas if not _is_choice(schema) for part in _applied_schemas(schema, resolve)]
    combined: set[int] = set()
    while todo:
        part = todo.pop()
        if isinstance(part, dict) and id(part) not in combined:
            combined.add(id(part))
            todo += _applied_schemas(part, resolve)
    return combined


def _is_choice(schema: Schema) -> bool:
    """Return whether a schema only refers to another one, or to several of which one applies."""
    used = [key for key in (*_APPLICATORS, "$ref") if key in schema]
    several = "allOf" in schema and not (isinstance(schema["allOf"], list) and len(schema["allOf"]) == 1)
    return len(used) <= 1 and not several and _OBJECT_KEYWORDS.isdisjoint(schema)


def _applied_schemas(schema: Schema, resolve: Resolve) -> Iterator[Any]:
    """Yield the schemas that apply to the same value as ``schema``."""
    yield resolve(schema)
    for key in _APPLICATORS:
        yield from _list(schema, key)
    for key in _CONDITIONS:
        yield schema.get(key)
    for key in ("dependentSchemas", "dependencies"):
        yield from _dict(schema, key).values()
