"""Formatting that renderers of model families share: JSON styles, Go's values, tool schemas, Gemma's notation, images.

A plain dict is an unordered map: its keys are sorted. A KeyOrderedDict keeps its order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.encode import go_json, go_quote, go_string
from ollama_nb.api.messages import Message, Tool, ToolCall
from ollama_nb.template.values import show

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""White space as Go defines it, which differs from Python's definition."""


class KeyOrderedDict(dict[str, Any]):
    """An object that is written in the order of its keys."""


class ArgumentDict(KeyOrderedDict):
    """A map that is written in the order of its keys and with ``<>&`` escaped in every style."""


def _plain_text(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return quoted if quoted.isascii() else _LONE_SURROGATE.sub("\ufffd", quoted)


@dataclass(frozen=True, slots=True)
class _Style:
    comma: str = ", "
    colon: str = ": "
    text: Callable[[str], str] = go_string
    indent: str = ""


_COMPACT = _Style(",", ":")
_SPACED = _Style()
_PLAIN = _Style(text=_plain_text)
_QUOTED = _Style(text=go_quote)
_INDENTED = _Style(",", indent="    ")


def compact(value: Any) -> str:
    """Format as JSON without white space."""
    return _format(value, _COMPACT)


def spaced(value: Any) -> str:
    """Format as JSON with a space after commas and colons."""
    return _format(value, _SPACED)


def plain(value: Any) -> str:
    """Format as ``spaced`` does, without escaping ``<>&``."""
    return _format(value, _PLAIN)


def quoted(value: Any) -> str:
    """Format as ``spaced`` does, with strings quoted as by Go's ``%q``."""
    return _format(value, _QUOTED)


def indented(value: Any) -> str:
    """Format as JSON on several lines, indented by four spaces a level."""
    return _format(value, _INDENTED)


def _format(value: Any, style: _Style, margin: str = "\n") -> str:
    if isinstance(value, Mapping):
        return _object(value, style, margin)
    if isinstance(value, (list, tuple)):
        return _joined("[", [_format(item, style, margin + style.indent) for item in value], "]", style, margin)
    return style.text(value) if isinstance(value, str) else go_json(value)


def _object(value: Mapping[str, Any], style: _Style, margin: str) -> str:
    keys = list(value) if isinstance(value, KeyOrderedDict) else sorted(value, key=_bytes)
    if isinstance(value, ArgumentDict) and style is _PLAIN:
        style = _SPACED
    deeper = margin + style.indent
    inner = [f"{style.text(key)}{style.colon}{_format(value[key], style, deeper)}" for key in keys]
    return _joined("{", inner, "}", style, margin)


def _joined(start: str, items: list[str], end: str, style: _Style, margin: str) -> str:
    if not style.indent or not items:
        return start + style.comma.join(items) + end
    return start + ",".join(margin + style.indent + item for item in items) + margin + end


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def go_value(value: Any) -> str:
    """Format a JSON value as Go prints it: every number is a float (``1e+06``)."""
    return show(_floats(value))


def _floats(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) < 1 << 1000 else value
    if isinstance(value, Mapping):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_floats(item) for item in value]
    return value


def whole_number(value: Any) -> str:
    """Format a whole number in plain digits, another number as Go prints it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 63:
        return str(int(value))
    return str(value) if isinstance(value, int) else go_value(value)


def trim(text: str) -> str:
    """Remove leading and trailing white space as Go defines it."""
    return text.strip(SPACE)


def trim_right(text: str) -> str:
    return text.rstrip(SPACE)


def by_name(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the entries sorted by key."""
    return sorted(values.items(), key=lambda entry: _bytes(entry[0]))


_PARAMETER_KEYS = ("type", "$defs", "items", "required", "properties")


@dataclass(frozen=True, slots=True)
class ToolFunction:
    """The function of a tool. ``parameters`` is its schema, in the order in which it is written as JSON."""

    name: str
    description: str
    parameters: KeyOrderedDict

    @property
    def properties(self) -> Mapping[str, KeyOrderedDict]:
        return self.parameters["properties"] or {}

    def json(self) -> KeyOrderedDict:
        described = {"description": self.description} if self.description else {}
        return KeyOrderedDict(name=self.name, **described, parameters=self.parameters)


def function_of(tool: Tool) -> ToolFunction:
    function = _mapping(tool.get("function"))
    parameters = _parameters(_mapping(function.get("parameters")))
    return ToolFunction(_text(function.get("name")), _text(function.get("description")), parameters)


def tool_json(tool: Tool) -> KeyOrderedDict:
    """Return a tool in the order in which it is written as JSON.

    Known keys precede the client's other keys. Empty values and values of the wrong type are left out, except the type
    of the tool and the name and parameters of its function.
    """
    function = _mapping(tool.get("function"))
    others = {key: value for key, value in function.items() if key not in ("name", "description", "parameters")}
    items = {"items": tool["items"]} if tool.get("items") is not None else {}
    rest = {key: value for key, value in tool.items() if key not in ("type", "items", "function")}
    written = KeyOrderedDict({**function_of(tool).json(), **others})
    return KeyOrderedDict({"type": _text(tool.get("type")), **items, "function": written, **rest})


def types(schema: Mapping[str, Any]) -> list[str]:
    """Return the names of the types that a property may have."""
    kinds = schema.get("type")
    return [kinds] if isinstance(kinds, str) else _names(kinds)


def _parameters(schema: Mapping[str, Any]) -> KeyOrderedDict:
    out = KeyOrderedDict(type=_text(schema.get("type")))
    out.update({key: schema[key] for key in ("$defs", "items") if schema.get(key) is not None})
    if required := _names(schema.get("required")):
        out["required"] = required
    properties = schema.get("properties")
    out["properties"] = None if properties is None else _properties(properties)
    return _with_others(out, schema, _PARAMETER_KEYS)


def _properties(schemas: Any) -> ArgumentDict:
    return ArgumentDict({name: _property(_mapping(schema)) for name, schema in _mapping(schemas).items()})


def _property(schema: Mapping[str, Any]) -> KeyOrderedDict:
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
    out = KeyOrderedDict({key: value for key, value in read.items() if value is not None})
    return _with_others(out, schema, tuple(read))


def _with_others(out: KeyOrderedDict, schema: Mapping[str, Any], known: Sequence[str]) -> KeyOrderedDict:
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


@dataclass(frozen=True, slots=True)
class GemmaNotation:
    """The notation of the Gemma families: bare sorted keys, strings between ``quote`` tokens, ``none`` for null."""

    quote: str
    none: str

    def text(self, text: str) -> str:
        return self.quote + text + self.quote

    def texts(self, texts: list[str]) -> str:
        return "[" + ",".join(map(self.text, texts)) + "]"

    def value(self, value: Any, *, quoted_keys: bool = False) -> str:
        if value is None:
            return self.none
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool):
            return go_value(value)
        if isinstance(value, Mapping):
            return "{" + self.entries(value, quoted_keys=quoted_keys) + "}"
        if isinstance(value, (list, tuple)):
            return "[" + ",".join(self.value(item, quoted_keys=quoted_keys) for item in value) + "]"
        return whole_number(value)

    def entries(self, values: Mapping[str, Any], *, quoted_keys: bool = False) -> str:
        return ",".join(
            f"{self.text(key) if quoted_keys else key}:{self.value(value, quoted_keys=quoted_keys)}"
            for key, value in by_name(values)
        )

    def call(self, call: ToolCall) -> str:
        return f"call:{call.name}{{{self.entries(call.arguments)}}}"

    def declaration(self, function: ToolFunction, properties: str | None) -> str:
        """Write the declaration of a function. ``properties`` is their text, None if the function has no properties."""
        schema = function.parameters
        parts = [] if properties is None else [f"properties:{{{properties}}}"]
        if "required" in schema:
            parts.append(f"required:{self.texts(schema['required'])}")
        if schema["type"]:
            parts.append(f"type:{self.text(schema['type'].upper())}")
        has_any = schema["type"] or schema["properties"] is not None
        parameters = f",parameters:{{{','.join(parts)}}}" if has_any else ""
        return f"declaration:{function.name}{{description:{self.text(function.description)}{parameters}}}"


_APART = (*SPACE, "\ufffd")
"""Characters with which a text may directly follow an image marker."""


class Images:
    """Numbers the images of one prompt, and inserts their markers (``[img-N]``) into the contents of messages."""

    def __init__(self) -> None:
        self._count = 0

    def skip(self, message: Message) -> None:
        """Count the images of a message whose content gets no markers."""
        self._count += len(message.images)

    def mark(self, message: Message, content: str | None = None) -> str:
        """Return the content (by default the message's own) with a marker per image.

        A marker replaces an ``[img]`` in the content, or precedes the content. Content that already has numbered
        markers is unchanged.
        """
        content = message.content if content is None else content
        first = self._count
        self.skip(message)
        if "[img-" in content:
            return content
        front = ""
        for number in range(first, self._count):
            if "[img]" in content:
                content = content.replace("[img]", f"[img-{number}]", 1)
            else:
                front += f"[img-{number}]"
        gap = " " if front and content and not content.startswith(_APART) else ""
        return front + gap + content


def mark_images(messages: Sequence[Message]) -> list[str]:
    """Return the contents of all messages with their image markers."""
    images = Images()
    return [images.mark(message) for message in messages]
