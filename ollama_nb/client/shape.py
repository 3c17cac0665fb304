"""Types as the shape of an answer: a Python type → a JSON Schema that constrains the model → a value of that type.

Pydantic models describe and parse themselves; msgspec handles every other type. Both schemas are made as strict as the
readers (``strict_schema.py``), so that whatever the model may write can be read.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from ollama_nb.client.answer import Answer
from ollama_nb.client.strict_schema import msgspec_schema, pydantic_schema
from ollama_nb.errors import BadRequest, OllamaError

T = TypeVar("T")

_VALUE_KEYWORDS = frozenset({"const", "default", "enum", "examples"})
"""Keywords of a JSON Schema whose value is data, not another schema."""

Fields = Mapping[str, Any]
"""Name → a type, a list of choices, a description, or a pair of a type (or choices) and a description."""


class ShapeMismatch(OllamaError):
    """An answer does not have the wanted shape; ``reason`` says where. Ask again, or allow the shape more."""

    code = "shape_mismatch"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the answer does not have the wanted shape: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AnswerShape(Generic[T]):
    """The JSON Schema of an answer, and ``parse``, which turns an answer's text into a value.

    In ``schema`` every property is required and no other property is allowed. ``parse`` raises ShapeMismatch for a text
    that does not match, such as one that was cut off.
    """

    schema: dict[str, Any]
    parse: Callable[[str], T]


def shape_of(wanted: Any) -> AnswerShape[Any]:
    """The shape of a Pydantic model, dataclass, TypedDict, Enum, ``Literal``, builtin or generic type, or of fields.

    Raises BadRequest for anything else.
    """
    if isinstance(wanted, Mapping):
        return _shape_of_fields(wanted)
    if hasattr(wanted, "model_json_schema"):
        return AnswerShape(_closed(pydantic_schema(wanted)), _parser(wanted.model_validate_json, ValueError))
    try:
        schema = _inlined(msgspec_schema(wanted))
    except (TypeError, NameError) as error:
        reason = str(error).splitlines()[-1]  # the line that names the type
        raise BadRequest(f"{wanted!r} cannot be the shape of an answer: {reason}") from None
    if typing.is_typeddict(wanted):  # msgspec sorts the names, but the model should write them in the declared order
        schema["properties"] = {name: schema["properties"][name] for name in typing.get_type_hints(wanted)}
    return AnswerShape(_closed(schema), _parser(lambda text: _converted(json.loads(text), wanted), ValueError))


def bind_format(returns: Any, extras: dict[str, Any]) -> tuple[AnswerShape[Any] | None, dict[str, Any]]:
    """The shape of a typed answer, and the question's keywords with its format. Raises BadRequest beside a format."""
    if returns is None:
        return None, extras
    if extras.get("format") is not None:
        raise BadRequest("give `returns` or `format`, not both")
    if (extras.get("n") or 1) != 1:
        raise BadRequest("`returns` gives one value: leave out `n`, or use `format` and read the answer's `choices`")
    shape = shape_of(returns)
    return shape, {**extras, "format": shape.schema}


def add_field_list(system: str | None, shape: AnswerShape[Any] | None) -> str | None:
    """The system message with the names and types of the answer's fields, which the model would otherwise guess."""
    fields = describe_fields(shape.schema) if shape else ""
    return "\n\n".join(filter(None, (system, fields))) if fields else system


def parse_value(shape: AnswerShape[T], answer: Answer) -> T:
    """The answer as a value. Raises OllamaError when the answer was cut off or does not match."""
    if answer.reason == "length":
        raise OllamaError(
            f"the answer was cut off after {len(answer)} characters, before it was complete; `num_predict` and "
            "`num_ctx` set its maximum length"
        )
    return shape.parse(answer)


def _shape_of_fields(fields: Fields) -> AnswerShape[Any]:
    if not fields:
        raise BadRequest("no fields: name at least one, such as `{'city': str}`")
    for name, given in fields.items():
        try:
            msgspec_schema(_field_type(name, given))
        except (TypeError, NameError):
            raise BadRequest(
                f'field "{name}": {given!r} is neither a type nor a list of choices nor a description'
            ) from None
        except BadRequest as error:
            raise BadRequest(f'field "{name}": {error.message}') from None
    return shape_of(_typed_dict(fields))


def _typed_dict(fields: Fields) -> Any:
    return typing.TypedDict("Fields", {name: _field_type(name, given) for name, given in fields.items()})  # type: ignore[operator]


def _field_type(name: str, given: Any) -> Any:
    match given:
        case str():
            return Annotated[str, msgspec.Meta(description=given)]
        case list():
            return Literal[tuple(given)]
        case (kind, str() as description):
            return Annotated[_field_type(name, kind), msgspec.Meta(description=description)]
        case tuple():
            raise BadRequest(f'field "{name}": a list names choices; a pair is a type and a description')
    return given


def _converted(found: Any, wanted: Any) -> Any:
    if not (typing.is_typeddict(wanted) and isinstance(found, dict)):
        return msgspec.convert(found, wanted, str_keys=True)
    # Property by property: msgspec 0.22 does not find names of a TypedDict that are not ASCII.
    hints = typing.get_type_hints(wanted, include_extras=True)
    if missing := [name for name in wanted.__required_keys__ if name not in found]:
        raise ValueError(f"`{missing[0]}` is missing")
    return {name: _converted(found[name], kind) for name, kind in hints.items() if name in found}


def _parser(parse: Callable[[str], T], expected: type[Exception]) -> Callable[[str], T]:
    """``parse`` with its ``expected`` errors turned into OllamaError."""

    def parse_checked(text: str) -> T:
        try:
            return parse(text)
        except expected as error:
            raise ShapeMismatch(str(error)) from None

    return parse_checked


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its root in place of a reference to it: the root's name is of no use to a model."""
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
    """The schema with all properties required and no others allowed: models use any freedom that is left to them."""
    if isinstance(part, list):
        return [_closed(value) for value in part]
    if not isinstance(part, Mapping):
        return part
    closed = {
        key: value if key in _VALUE_KEYWORDS else _closed(value)
        for key, value in part.items()
        if key != "title" or not isinstance(value, str)
    }
    if isinstance(properties := part.get("properties"), Mapping) and part.get("type") == "object":
        closed = {"additionalProperties": False, **closed, "required": [*properties]}
    return closed


# Descriptions of a schema for a model


def describe_fields(schema: Mapping[str, Any], head: str = "Answer with one JSON object that has these fields:") -> str:
    """The fields of an object as a list below ``head``, for a system message; empty for a schema without fields."""
    parts = resolve(schema, schema).get("properties", {})
    return "\n".join([head, *(f"- {_describe(name, part, schema)}" for name, part in parts.items())]) if parts else ""


def properties(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The properties of an object's schema. Raises BadRequest for a schema of anything else."""
    found = resolve(schema, schema).get("properties")
    if not found:
        raise BadRequest("fields need names: give a Pydantic model, a dataclass, a TypedDict or a dict of fields")
    return dict(found)


def resolve(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The type that a part of a schema stands for: references are followed, "or null" is removed."""
    if reference := part.get("$ref"):
        return resolve(schema["$defs"][reference.rpartition("/")[2]], schema)
    choices = [choice for choice in part.get("anyOf", ()) if choice.get("type") != "null"]
    return resolve(choices[0], schema) if len(choices) == 1 else part


def _describe(name: str, part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """``name (integer or null): what it is``."""
    real = resolve(part, schema)
    if "enum" in real:
        kind = "one of " + ", ".join(map(str, real["enum"]))
    else:
        kind = str(real.get("format") or real.get("type") or "any")
        if kind == "array":
            kind = f"list of {resolve(real.get('items') or {}, schema).get('type', 'any')}s"
    optional = any(choice.get("type") == "null" for choice in part.get("anyOf", ()))
    description = part.get("description") or real.get("description")
    return f"{name} ({kind}{' or null' if optional else ''})" + (f": {description}" if description else "")
