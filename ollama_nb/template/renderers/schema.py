"""Tools as families print them: the keys that are known, in a fixed order, then the client's others.

Rule: what is empty is left out, except a tool's type and a function's name and parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.messages import Tool
from ollama_nb.template.renderers.spelling import Ordered, Struct

_PROPERTY_KEYS = ("anyOf", "type", "items", "description", "enum", "properties", "required")


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


def types(schema: Mapping[str, Any]) -> Sequence[str]:
    """The names of the types that a property may have."""
    kinds = schema.get("type") or ()
    return [kinds] if isinstance(kinds, str) else [kind for kind in kinds if isinstance(kind, str)]


def _parameters(schema: Mapping[str, Any]) -> Struct:
    out = Struct(type=_text(schema.get("type")))
    out.update({key: schema[key] for key in ("$defs", "items") if schema.get(key) is not None})
    if schema.get("required"):
        out["required"] = schema["required"]
    properties = schema.get("properties")
    out["properties"] = None if properties is None else _properties(properties)
    return _with_others(out, schema, (*out, "required"))


def _properties(schemas: Any) -> Ordered:
    return Ordered({name: _property(_mapping(schema)) for name, schema in _mapping(schemas).items()})


def _property(schema: Mapping[str, Any]) -> Struct:
    out = Struct({key: schema[key] for key in _PROPERTY_KEYS if _is_there(key, schema.get(key))})
    if "anyOf" in out:
        out["anyOf"] = [_property(_mapping(other)) for other in out["anyOf"]]
    if "type" in out:
        names = types(out)
        out["type"] = names[0] if len(names) == 1 else names
    if "properties" in out:
        out["properties"] = _properties(out["properties"])
    return _with_others(out, schema, _PROPERTY_KEYS)


def _is_there(key: str, value: Any) -> bool:
    return value is not None if key in ("items", "properties") else bool(value)


def _with_others(out: Struct, schema: Mapping[str, Any], known: Sequence[str]) -> Struct:
    out.update({key: value for key, value in schema.items() if key not in known})
    return out


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
