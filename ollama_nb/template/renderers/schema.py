"""Tools as families print them: the keys that are known, in a fixed order, then the client's others.

Rule: what is empty or of the wrong kind is left out, except a tool's type and a function's name and parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.messages import Tool
from ollama_nb.template.renderers.spelling import Ordered, Struct

_PARAMETER_KEYS = ("type", "$defs", "items", "required", "properties")


@dataclass(frozen=True, slots=True)
class Function:
    """A tool's function. ``parameters`` and the ``properties`` in it are ready to be written as JSON."""

    name: str
    description: str
    parameters: Struct

    @property
    def properties(self) -> Mapping[str, Struct]:
        return self.parameters["properties"] or {}

    def json(self) -> Struct:
        described = {"description": self.description} if self.description else {}
        return Struct(name=self.name, **described, parameters=self.parameters)


def function_of(tool: Tool) -> Function:
    function = _mapping(tool.get("function"))
    parameters = _parameters(_mapping(function.get("parameters")))
    return Function(_text(function.get("name")), _text(function.get("description")), parameters)


def tool_json(tool: Tool) -> Struct:
    """The whole tool."""
    function = _mapping(tool.get("function"))
    others = {key: value for key, value in function.items() if key not in ("name", "description", "parameters")}
    items = {"items": tool["items"]} if tool.get("items") is not None else {}
    rest = {key: value for key, value in tool.items() if key not in ("type", "items", "function")}
    written = Struct({**function_of(tool).json(), **others})
    return Struct({"type": _text(tool.get("type")), **items, "function": written, **rest})


def types(schema: Mapping[str, Any]) -> list[str]:
    """The names of the types that a property may have."""
    kinds = schema.get("type")
    return [kinds] if isinstance(kinds, str) else _names(kinds)


def _parameters(schema: Mapping[str, Any]) -> Struct:
    out = Struct(type=_text(schema.get("type")))
    out.update({key: schema[key] for key in ("$defs", "items") if schema.get(key) is not None})
    if required := _names(schema.get("required")):
        out["required"] = required
    properties = schema.get("properties")
    out["properties"] = None if properties is None else _properties(properties)
    return _with_others(out, schema, _PARAMETER_KEYS)


def _properties(schemas: Any) -> Ordered:
    return Ordered({name: _property(_mapping(schema)) for name, schema in _mapping(schemas).items()})


def _property(schema: Mapping[str, Any]) -> Struct:
    properties = schema.get("properties")
    read = {
        "anyOf": [_property(_mapping(other)) for other in _list(schema.get("anyOf"))] or None,
        "type": _one_or_all(types(schema)) or None,
        "items": schema.get("items"),
        "description": _text(schema.get("description")) or None,
        "enum": _list(schema.get("enum")) or None,
        "properties": None if properties is None else _properties(properties),
        "required": _names(schema.get("required")) or None,
    }
    out = Struct({key: value for key, value in read.items() if value is not None})
    return _with_others(out, schema, tuple(read))


def _with_others(out: Struct, schema: Mapping[str, Any], known: Sequence[str]) -> Struct:
    out.update({key: value for key, value in schema.items() if key not in known})
    return out


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(value: Any) -> list[str]:
    return [item for item in _list(value) if isinstance(item, str)]


def _one_or_all(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
