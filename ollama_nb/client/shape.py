"""Types as the shape of an answer: a Python type → a JSON Schema that binds the model → a value of that type.

Pydantic models describe and read themselves (Pydantic is never imported here); msgspec knows every other type.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from ollama_nb.client.answer import Answer
from ollama_nb.errors import BadRequest, OllamaError

T = TypeVar("T")

_VALUES = frozenset({"const", "default", "enum", "examples"})

Fields = Mapping[str, Any]
"""Name → a type, a list of choices, a text that describes it, or a pair of one of the first two and such a text."""


@dataclass(frozen=True, slots=True)
class Shape(Generic[T]):
    """``schema``: every property is required, none may be added. ``read`` makes a value of an answer's text.

    ``read`` raises OllamaError for a text that does not fit, such as one that was cut off.
    """

    schema: dict[str, Any]
    read: Callable[[str], T]


def shape_of(wanted: Any) -> Shape[Any]:
    """The shape of a Pydantic model, dataclass, TypedDict, Enum, ``Literal``, builtin or generic type, or of fields.

    Raises BadRequest for what is no such type.
    """
    if isinstance(wanted, Mapping):
        return _of_fields(wanted)
    if hasattr(wanted, "model_json_schema"):
        return Shape(_closed(wanted.model_json_schema()), _reader(wanted.model_validate_json, ValueError))
    try:
        schema = _inlined(msgspec.json.schema(wanted))
    except (TypeError, NameError) as error:
        raise BadRequest(f"{wanted!r} cannot be the shape of an answer: {error}") from None
    if typing.is_typeddict(wanted):  # msgspec sorts their names; the order in which a model is asked matters
        schema["properties"] = {name: schema["properties"][name] for name in typing.get_type_hints(wanted)}
    return Shape(_closed(schema), _reader(lambda text: _converted(json.loads(text), wanted), ValueError))


def bound(returns: Any, extras: dict[str, Any]) -> tuple[Shape[Any] | None, dict[str, Any]]:
    """The shape that an answer must have, and the question's keywords with it. Raises BadRequest beside a format."""
    if returns is None:
        return None, extras
    if extras.get("format") is not None:
        raise BadRequest("give `returns` or `format`, not both")
    shape = shape_of(returns)
    return shape, {**extras, "format": shape.schema}


def with_fields(system: str | None, shape: Shape[Any] | None) -> str | None:
    """The system message, with the names and types of the fields: the model should not have to guess them."""
    told = fields_told(shape.schema) if shape else ""
    return "\n\n".join(filter(None, (system, told))) if told else system


def value(shape: Shape[T], answer: Answer) -> T:
    """The answer as a value. Raises OllamaError where it was cut off or does not fit."""
    if answer.reason == "length":
        raise OllamaError(
            f"the answer was cut off after {len(answer)} characters, before it was complete; `num_predict` and "
            "`num_ctx` set its longest length"
        )
    return shape.read(answer)


def _of_fields(fields: Fields) -> Shape[Any]:
    if not fields:
        raise BadRequest("no fields: name at least one, such as `{'city': str}`")
    for name, told in fields.items():
        try:
            msgspec.json.schema(_field(name, told))
        except (TypeError, NameError):
            raise BadRequest(
                f'field "{name}": {told!r} is neither a type nor a list of choices nor a description'
            ) from None
    return shape_of(_typed_dict(fields))


def _typed_dict(fields: Fields) -> Any:
    return typing.TypedDict("Fields", {name: _field(name, told) for name, told in fields.items()})  # type: ignore[operator]


def _field(name: str, told: Any) -> Any:
    match told:
        case str():
            return Annotated[str, msgspec.Meta(description=told)]
        case list():
            return Literal[tuple(told)]
        case (kind, str() as description):
            return Annotated[_field(name, kind), msgspec.Meta(description=description)]
        case tuple():
            raise BadRequest(f'field "{name}": a list names choices; a pair is a type and a description')
    return told


def _converted(found: Any, wanted: Any) -> Any:
    if not (typing.is_typeddict(wanted) and isinstance(found, dict)):
        return msgspec.convert(found, wanted, str_keys=True)
    # Property by property: msgspec 0.22 does not find the names of a TypedDict that are not ASCII.
    hints = typing.get_type_hints(wanted, include_extras=True)
    if missing := [name for name in wanted.__required_keys__ if name not in found]:
        raise ValueError(f"`{missing[0]}` is missing")
    return {name: _converted(found[name], kind) for name, kind in hints.items() if name in found}


def _reader(read: Callable[[str], T], wrong: type[Exception]) -> Callable[[str], T]:
    def checked(text: str) -> T:
        try:
            return read(text)
        except wrong as error:
            raise OllamaError(f"the answer does not have the wanted shape: {error}") from None

    return checked


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose root is no reference: the root's own name is of no use to a model."""
    reference = schema.get("$ref", "")
    parts = schema.get("$defs", {})
    if not reference:
        return schema
    root = parts[reference.removeprefix("#/$defs/")]
    others = {name: part for name, part in parts.items() if part is not root or _refers(parts, reference)}
    return {**root, "$defs": others} if others else dict(root)


def _refers(part: Any, reference: str) -> bool:
    if isinstance(part, Mapping):
        return part.get("$ref") == reference or any(_refers(value, reference) for value in part.values())
    return isinstance(part, list) and any(_refers(value, reference) for value in part)


def _closed(part: Any) -> Any:
    """Objects with exactly their named properties: a model that may leave some out, or add some, does."""
    if isinstance(part, list):
        return [_closed(value) for value in part]
    if not isinstance(part, Mapping):
        return part
    closed = {
        key: value if key in _VALUES else _closed(value)
        for key, value in part.items()
        if key != "title" or not isinstance(value, str)
    }
    if isinstance(properties := part.get("properties"), Mapping) and part.get("type") == "object":
        closed = {"additionalProperties": False, **closed, "required": [*properties]}
    return closed


# in words


def fields_told(schema: Mapping[str, Any], head: str = "Answer with one JSON object that has these fields:") -> str:
    """What a model is told of the object that it must answer with; nothing for a shape that has no fields."""
    parts = resolved(schema, schema).get("properties", {})
    return "\n".join([head, *(f"- {_told(name, part, schema)}" for name, part in parts.items())]) if parts else ""


def properties(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The object's properties. Raises BadRequest for a schema of anything else."""
    found = resolved(schema, schema).get("properties")
    if not found:
        raise BadRequest("fields need names: give a Pydantic model, a dataclass, a TypedDict or a dict of fields")
    return dict(found)


def resolved(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a schema without what stands around its type: a reference, or "may be null"."""
    if reference := part.get("$ref"):
        return resolved(schema["$defs"][reference.rpartition("/")[2]], schema)
    choices = [choice for choice in part.get("anyOf", ()) if choice.get("type") != "null"]
    return resolved(choices[0], schema) if len(choices) == 1 else part


def _told(name: str, part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """``name (integer or null): what it is``."""
    real = resolved(part, schema)
    if "enum" in real:
        kind = "one of " + ", ".join(map(str, real["enum"]))
    else:
        kind = str(real.get("format") or real.get("type") or "any")
        if kind == "array":
            kind = f"list of {resolved(real.get('items') or {}, schema).get('type', 'any')}s"
    optional = any(choice.get("type") == "null" for choice in part.get("anyOf", ()))
    meaning = part.get("description") or real.get("description")
    return f"{name} ({kind}{' or null' if optional else ''})" + (f": {meaning}" if meaning else "")
