"""JSON Schemas that no finite text can match: recursion that is required, such as an object that must hold its like.

Rule: a schema ends when everything that it requires ends; what is found to end is told to those that wait for it. Where
several keywords speak of the same value, each is taken alone: what is refused here cannot end, but not all of that is.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Schema = dict[str, Any]
Target = Callable[[Schema], Any]


def endless(schemas: Iterable[Schema], target: Target) -> str | None:
    """The ``$ref`` of a schema that never ends, None when all do. ``target``: the schema that a ``$ref`` means."""
    found = list(schemas)
    waiting: defaultdict[int, list[Schema]] = defaultdict(list)
    for schema in found:
        for part in _needs(schema, target):
            waiting[id(part)].append(schema)
    ending: set[int] = set()
    todo = deque(reversed(found))  # parts come after what they are parts of
    while todo:
        schema = todo.popleft()
        if id(schema) not in ending and _ends(schema, target, ending):
            ending.add(id(schema))
            todo += waiting[id(schema)]
    return next((str(one["$ref"]) for one in found if id(one) not in ending and "$ref" in one), None)


def _needs(schema: Schema, target: Target) -> Iterator[Any]:
    """The schemas on which it depends whether this one ends."""
    yield target(schema)
    for key in ("allOf", "anyOf", "oneOf"):
        yield from _list(schema.get(key))
    yield from _members(schema)
    yield from _items(schema)


def _ends(schema: Schema, target: Target, ending: set[int]) -> bool:
    def ends(part: Any) -> bool:
        return not isinstance(part, dict) or id(part) in ending

    choices = (_list(schema.get(key)) for key in ("anyOf", "oneOf"))
    return (
        ends(target(schema))
        and all(map(ends, _list(schema.get("allOf"))))
        and all(not some or any(map(ends, some)) for some in choices)
        and ("const" in schema or "enum" in schema or _some_type_ends(schema, ends))
    )


def _some_type_ends(schema: Schema, ends: Callable[[Any], bool]) -> bool:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if set(map(str, kinds)) - {"object", "array"}:
        return True  # texts and numbers do; so does what may be anything
    return ("object" in kinds and all(map(ends, _members(schema)))) or (
        "array" in kinds and all(map(ends, _items(schema)))
    )


def _members(schema: Schema) -> Iterator[Any]:
    """Of an object: the values that it must have."""
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    for name in _list(schema.get("required")):
        yield known.get(name, schema.get("additionalProperties")) if isinstance(name, str) else None


def _items(schema: Schema) -> Iterator[Any]:
    """Of an array: the kinds of items that it must have."""
    least = schema.get("minItems")
    first = _list(schema.get("prefixItems"))
    if isinstance(least, int) and least > 0:
        yield from first[:least]
        if least > len(first):
            yield schema.get("items")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
