"""Objects that list their properties get no others, unless their schema says so.

JSON Schema allows others where nothing is said. But whoever lists properties wants these, a small model that may add to
them hardly ever stops, and Ollama's engine adds none. Rule: an object is closed only where one schema alone speaks of
it; of two that hold together, each would shut out what the other lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Schema = dict[str, Any]
Target = Callable[[Schema], Any]

_LISTS = ("allOf", "anyOf", "oneOf")
_ONES = ("not", "if", "then", "else")
_SAYS_MORE = frozenset(
    {
        "properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames", "required",
        "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", *_ONES,
    }
)  # fmt: skip
_OPENS = frozenset(
    {
        "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames", "dependentSchemas",
        "dependencies", "$ref", *_LISTS, *_ONES,
    }
)  # fmt: skip


def close_objects(schemas: Iterable[Schema], target: Target) -> None:
    """Write ``additionalProperties`` into the schemas that are to be closed. ``target``: what a ``$ref`` means."""
    found = list(schemas)
    shared = _shared(found, target)
    for schema in found:
        if id(schema) not in shared and _can_close(schema):
            schema["additionalProperties"] = False


def _can_close(schema: Schema) -> bool:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties or not _OPENS.isdisjoint(schema):
        return False
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    return (
        isinstance(least, int)
        and least <= len(properties)
        and isinstance(required, list)
        and all(name in properties for name in required if isinstance(name, str))
    )


def _shared(schemas: list[Schema], target: Target) -> set[int]:
    """The schemas that speak of a value together with others."""
    todo = [part for schema in schemas if not _is_choice(schema) for part in _of_same_value(schema, target)]
    shared: set[int] = set()
    while todo:
        part = todo.pop()
        if isinstance(part, dict) and id(part) not in shared:
            shared.add(id(part))
            todo += _of_same_value(part, target)
    return shared


def _is_choice(schema: Schema) -> bool:
    """Whether a schema only refers to another, or offers some of which one holds."""
    says = [key for key in (*_LISTS, "$ref") if key in schema]
    several = "allOf" in schema and not (isinstance(schema["allOf"], list) and len(schema["allOf"]) == 1)
    return len(says) <= 1 and not several and _SAYS_MORE.isdisjoint(schema)


def _of_same_value(schema: Schema, target: Target) -> Iterator[Any]:
    yield target(schema)
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            yield from schema[key]
    for key in _ONES:
        yield schema.get(key)
    for key in ("dependentSchemas", "dependencies"):
        if isinstance(schema.get(key), dict):
            yield from schema[key].values()
