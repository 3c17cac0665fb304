"""Gemma 4's declarations of tools: schemas in a notation of its own, keys sorted, types in capitals.

Rule: what the notation has no place for is left out. Parameters named like a key of the schema are left out too: the
models were trained so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_nb.api.messages import Tool
from ollama_nb.template.renderers.gemma import Values
from ollama_nb.template.renderers.schema import function_of, types
from ollama_nb.template.renderers.spelling import Struct, by_name, go_value

VALUES = Values('<|"|>', "null")
_SCHEMA_KEYS = frozenset({"description", "type", "properties", "required", "nullable"})
_KEPT = ("description", "enum", "items", "required", "nullable")


def declaration(tool: Tool) -> str:
    function = function_of(tool)
    listed = _properties(_typed_all(function.properties)) if function.properties else None
    return f"<|tool>{VALUES.declaration(function, listed)}<tool|>"


# Properties that were read as such, made ready for the notation: their types become one text


def _typed_all(properties: Mapping[str, Struct]) -> dict[str, Any]:
    return {name: _typed(schema) for name, schema in properties.items()}


def _typed(schema: Struct) -> dict[str, Any]:
    out = {key: schema[key] for key in _KEPT if key in schema}
    kinds = types(schema) or _union(schema.get("anyOf", ()))
    if kinds:
        listed = ", ".join(f"'{kind.upper()}'" for kind in kinds)
        out["type"] = kinds[0] if len(kinds) == 1 else f"[{listed}]"
    if "properties" in schema:
        out["properties"] = _typed_all(schema["properties"])
    return out


def _union(branches: Sequence[Struct]) -> Sequence[str]:
    """The types of branches that say nothing but a type, each once; none when a branch says more."""
    if any(branch.keys() != {"type"} for branch in branches):
        return ()
    return list(dict.fromkeys(kind for branch in branches for kind in types(branch)))


# The notation


def _properties(properties: Mapping[str, Any]) -> str:
    return ",".join(
        f"{name}:{{{_property(schema)}}}"
        for name, schema in by_name(properties)
        if name not in _SCHEMA_KEYS and isinstance(schema, Mapping)
    )


def _property(schema: Mapping[str, Any]) -> str:
    kinds = _capitals(schema.get("type"))
    kind = kinds[0] if kinds else ""
    parts = []
    if isinstance(schema.get("description"), str) and schema["description"]:
        parts.append(f"description:{VALUES.text(schema['description'])}")
    if kind == "STRING" and isinstance(schema.get("enum"), list) and schema["enum"]:
        parts.append(f"enum:{VALUES.texts(list(map(go_value, schema['enum'])))}")
    if kind == "ARRAY" and isinstance(schema.get("items"), Mapping) and schema["items"]:
        parts.append(f"items:{{{_items(schema['items'])}}}")
    if schema.get("nullable") is True:
        parts.append("nullable:true")
    if kind == "OBJECT":
        inner = schema.get("properties")
        parts.append(f"properties:{{{_properties(inner if isinstance(inner, Mapping) else schema)}}}")
        if required := _names(schema.get("required")):
            parts.append(f"required:{VALUES.texts(required)}")
    if kinds:
        parts.append(_type(kinds))
    return ",".join(parts)


def _items(schema: Mapping[str, Any]) -> str:
    """The schema of an array's items: every key it has."""
    return ",".join(_item(key, value) for key, value in by_name(schema) if value is not None)


def _item(key: str, value: Any) -> str:
    if key == "properties":
        return f"properties:{{{_properties(value) if isinstance(value, Mapping) else ''}}}"
    if key == "required":
        return f"required:{VALUES.texts(_names(value))}"
    if key == "type":
        return _type(_capitals(value))
    return f"{key}:{VALUES.value(value, quoted_keys=True)}"


def _type(kinds: list[str]) -> str:
    if not kinds:
        return ""
    return f"type:{VALUES.text(kinds[0]) if len(kinds) == 1 else VALUES.texts(kinds)}"


def _capitals(value: Any) -> list[str]:
    return [kind.upper() for kind in ([value] if isinstance(value, str) else _names(value))]


def _names(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
