"""JSON values that several dialects read in the same way. All functions raise BadRequest."""

from __future__ import annotations

import re
from typing import Any

from ollama_nb.api.encode import go_quote
from ollama_nb.api.messages import Think, Tool
from ollama_nb.errors import BadRequest, InvalidThink
from ollama_nb.server.dialects.gojson import Fields, from_base64
from ollama_nb.server.dialects.images import EncodedImage
from ollama_nb.settings import FOREVER, MAX_DURATION, parse_duration

_LEVELS = '(must be "high", "medium", "low", "max", true, or false)'
_EFFORTS: dict[str, Think] = {
    "": None, "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high",
    "xhigh": "max", "ultra": "max", "max": "max",
}  # fmt: skip
_EFFORT_NAMES = '"minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none"'
_TOOL = frozenset({"strict", "cache_control", "items"})
_TOOL_FUNCTION = frozenset({"strict", "cache_control", "response", "returns", "return"})
"""Fields of tools that clients send and that templates may show to the model."""
_DATA_URL = re.compile(r"data:(?:image/(?:jpeg|jpg|png|webp))?;base64,", re.IGNORECASE)


def read_keep_alive(body: Fields) -> float | None:
    """Seconds; infinity for forever, None for no change. A number is in seconds, a text is a Go duration."""
    value = body.raw("keep_alive")
    if value is None:
        return None
    if isinstance(value, str):
        seconds = parse_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = FOREVER if value < 0 or value >= MAX_DURATION else float(value)
    else:
        kind = {bool: "bool", list: "[]interface {}"}.get(type(value), "map[string]interface {}")
        raise BadRequest(f"Unsupported type: '{kind}'", field="keep_alive")
    return FOREVER if seconds < 0 or seconds >= MAX_DURATION else seconds


def read_think(value: Any) -> Think:
    """The value of ``think``: a boolean, a level, or None."""
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        message = 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'
        raise InvalidThink(message, field="think")
    match value:
        case "low" | "medium" | "high" | "max":
            return value
    raise InvalidThink(f"invalid think value: {go_quote(value)} {_LEVELS}", field="think")


def read_effort(effort: str, field: str) -> Think:
    """A reasoning effort of OpenAI's APIs, from the field ``field``; an empty one is the model's default."""
    if effort not in _EFFORTS:
        text = f"invalid reasoning value: {go_quote(effort)} (must be {_EFFORT_NAMES})"
        raise InvalidThink(text, field=field)
    return _EFFORTS[effort]


def read_image(url: str | EncodedImage, field: str) -> bytes:
    """The bytes of an image in a data URL, from the field ``field``."""
    if isinstance(url, EncodedImage):
        if _DATA_URL.fullmatch(url.head):
            return url.data
        url = url.head
    if url[:8].lower().startswith(("http://", "https://")):
        text = "image URLs are not currently supported, please use base64 encoded data instead"
        raise BadRequest(text, field=field)
    start = _DATA_URL.match(url)
    try:
        if start is not None:
            return from_base64(url[start.end() :])
    except BadRequest:
        pass
    raise BadRequest("invalid image input", field=field)


def read_tools(body: Fields) -> tuple[Tool, ...]:
    """The field ``tools``, as chat completions and the native API write it."""
    return tuple(map(read_tool, body.structs("tools", "api.Tool", "api.Tools")))


def read_tool(tool: Fields) -> Tool:
    """A tool, unchanged because templates show its JSON to the model; only the types of outer fields are checked."""
    tool.text("type")
    tool.accept(_TOOL)
    function = tool.struct("function", "api.ToolFunction")
    function.text("name")
    function.text("description")
    function.accept(_TOOL_FUNCTION)
    check_schema(function.struct("parameters", "api.ToolFunctionParameters"))
    return tool.value


def warn_if_empty(message: Fields, *, has_content: bool) -> None:
    """Warn about a message that adds nothing to the prompt. The result of a tool may be an empty text."""
    if not has_content and not (message.text("role").lower() in ("tool", "function") and "content" in message):
        message.warn("the message is empty: it has no content, images or tool calls")


def check_schema(parameters: Fields) -> None:
    """Check the types of the outer fields of a tool's JSON Schema."""
    parameters.accept_all()
    for name, schema in parameters.object("properties", "map[string]api.ToolProperty").items():
        _check_type(parameters.below("properties", schema, "api.ToolProperty", f"properties.{name}"))
    parameters.texts("required")


def _check_type(schema: Fields) -> None:
    """Check that a property's type is a text or a list of texts."""
    schema.accept_all()
    if not isinstance(schema.raw("type"), str):
        schema.texts("type")
