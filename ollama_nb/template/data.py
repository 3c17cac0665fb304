"""The data of a Go template: messages, tool calls and tools as structs with Ollama's field names.

The root is a map; accessing an unknown field of a struct is an error. Tools keep their whole schema. Tools, functions,
parameters, properties and the arguments of calls print as JSON: first the known keys in Go's order, then the client's
other keys. Names of properties and arguments are sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ollama_nb.api.encode import go_json
from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.template.funcs import plain
from ollama_nb.template.values import Encoded, GoStruct, Stringer


class JSONMap(dict[str, Any], Stringer):
    """A map that prints as JSON with sorted keys."""

    def go_string(self) -> str:
        return go_json(plain(self))


class Properties(JSONMap):
    """A map of properties. As in Go, a missing one is an empty property."""

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else _property({})


class Slice(list[Any], Encoded):
    """A Go slice. An empty one is nil: its JSON is null."""

    def json_value(self) -> Any:
        return [plain(item) for item in self] or None


class ToolList(Slice, Stringer):
    """The tools. They print as JSON."""

    def go_string(self) -> str:
        return go_json(self.json_value())


class TypeNames(Slice, Stringer):
    """The types of a property. One prints as ``string``, several as ``[string null]``."""

    def go_string(self) -> str:
        return str(self[0]) if len(self) == 1 else "[" + " ".join(self) + "]"

    def json_value(self) -> Any:
        return self[0] if len(self) == 1 else super().json_value()


class JSONStruct(GoStruct, Stringer, Encoded):
    """A struct that prints as its JSON."""

    __slots__ = ("_json",)

    def __init__(
        self,
        type_name: str,
        fields: Mapping[str, Any],
        json: Mapping[str, Any],
        methods: Mapping[str, Callable[[], str]] | None = None,
    ) -> None:
        super().__init__(type_name, fields, methods)
        self._json = {key: plain(item) for key, item in json.items()}

    def json_value(self) -> Any:
        return self._json

    def go_string(self) -> str:
        return go_json(self._json)


# Messages


def message_views(messages: Sequence[Message]) -> list[GoStruct]:
    return [_message(message) for message in messages]


def _message(message: Message) -> GoStruct:
    return GoStruct(
        "api.Message",
        {
            "Role": message.role,
            "Content": message.content,
            "Thinking": message.thinking,
            "Images": Slice(message.images),
            "ToolCalls": Slice(map(_call, message.tool_calls)),
            "ToolName": message.tool_name,
            "ToolCallID": message.tool_call_id,
        },
    )


def _call(call: ToolCall) -> GoStruct:
    function = GoStruct(
        "api.ToolCallFunction", {"Index": call.index, "Name": call.name, "Arguments": JSONMap(call.arguments)}
    )
    return GoStruct("api.ToolCall", {"ID": call.id, "Function": function})


# Tools


def tool_views(tools: Sequence[Tool]) -> ToolList:
    """Return ``.Tools``. Without tools, it prints ``null`` and is false."""
    return ToolList(map(_tool, tools))


def _tool(tool: Tool) -> JSONStruct:
    function = _function(_mapping(tool.get("function")))
    kind, items = tool.get("type") or "function", tool.get("items")
    json = _ordered({**tool, "type": kind, "function": function}, ("type", "items", "function"))
    return JSONStruct("api.Tool", {"Type": kind, "Items": items, "Function": function}, json)


def _function(function: Mapping[str, Any]) -> JSONStruct:
    parameters = _parameters(_mapping(function.get("parameters")))
    name, description = function.get("name") or "", function.get("description") or ""
    json = _ordered({**function, "name": name, "parameters": parameters}, ("name", "description", "parameters"))
    if not description:
        json.pop("description", None)
    fields = {"Name": name, "Description": description, "Parameters": parameters}
    return JSONStruct("api.ToolFunction", fields, json)


def _parameters(schema: Mapping[str, Any]) -> JSONStruct:
    kind = schema.get("type") or "object"
    properties = _properties(schema.get("properties"))
    json = _ordered({**schema, "type": kind, "properties": properties}, _PARAMETER_KEYS)
    fields = {
        "Type": kind,
        "Defs": schema.get("$defs"),
        "Items": schema.get("items"),
        "Required": Slice(schema.get("required") or ()),
        "Properties": properties,
    }
    return JSONStruct("api.ToolFunctionParameters", fields, json)


def _properties(schemas: Any) -> Properties:
    return Properties({name: _property(_mapping(schema)) for name, schema in sorted(_mapping(schemas).items())})


def _property(schema: Mapping[str, Any]) -> JSONStruct:
    kinds = schema.get("type")
    types = TypeNames([kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds or ()])
    any_of = Slice(_property(_mapping(other)) for other in schema.get("anyOf") or ())
    properties = _properties(schema["properties"]) if schema.get("properties") else None
    json = dict(_ordered(schema, _PROPERTY_KEYS))
    if properties is not None:
        json["properties"] = properties
    fields = {
        "AnyOf": any_of,
        "Type": types,
        "Items": schema.get("items"),
        "Description": schema.get("description") or "",
        "Enum": Slice(schema.get("enum") or ()),
        "Properties": properties,
        "Required": Slice(schema.get("required") or ()),
    }
    return JSONStruct("api.ToolProperty", fields, json, methods={"ToTypeScriptType": lambda: typescript(schema)})


_PARAMETER_KEYS = ("type", "$defs", "items", "required", "properties")
_PROPERTY_KEYS = ("anyOf", "type", "items", "description", "enum", "properties", "required")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _ordered(value: Mapping[str, Any], first: tuple[str, ...]) -> dict[str, Any]:
    """Return the keys of ``first`` in that order, then the other keys in theirs."""
    known = {key: value[key] for key in first if key in value}
    return {**known, **{key: item for key, item in value.items() if key not in known}}


_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def typescript(schema: Mapping[str, Any]) -> str:
    """Return the TypeScript type of a property's schema, as in Ollama."""
    any_of = schema.get("anyOf")
    if any_of:
        return " | ".join(typescript(_mapping(other)) for other in any_of)
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else list(kinds or ())
    return " | ".join(_TYPESCRIPT.get(name, "any") for name in names) or "any"


# Roots


def think_keys(think: Think) -> dict[str, Any]:
    """Return ``Think``, ``ThinkLevel`` and ``IsThinkSet``. As in Ollama, thinking without a level is ``medium``."""
    level = think if isinstance(think, str) else "medium" if think else ""
    return {"Think": bool(think), "ThinkLevel": level, "IsThinkSet": think is not None}
