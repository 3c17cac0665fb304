"""JSON values that several dialects read in the same way. All functions raise BadRequest."""

from __future__ import annotations

import re
from typing import Any

from ollama_nb.api.encode import go_quote
from ollama_nb.api.messages import Think, Tool
from ollama_nb.errors import BadRequest, InvalidThink
from ollama_nb.server.dialects.gojson import Fields, from_base64
from ollama_nb.settings import FOREVER, MAX_DURATION, parse_duration

_LEVELS = '(must be "high", "medium", "low", "max", true, or false)'
_EFFORTS: dict[str, Think] = {
    "": None, "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high",
    "xhigh": "max", "ultra": "max", "max": "max",
}  # fmt: skip
_EFFORT_NAMES = '"minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none"'
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


def read_image(url: str, field: str) -> bytes:
    """The bytes of an image in a data URL, from the field ``field``."""
    if url.lower().startswith(("http://", "https://")):
        text = "image URLs are not currently supported, please use base64 encoded data instead"
        raise BadRequest(text, field=field)
    start = _DATA_URL.match(url)
    try:
        if start is not None:
            return from_base64(url[start.end() :])
    except BadRequest:
        pass
    raise BadRequest("invalid image input", field=field)


def read_tool(body: Fields, value: Any) -> Tool:
    """A tool, unchanged because templates show its JSON to the model; only the types of outer fields are checked."""
    tool = body.below("tools", value, "api.Tool")
    tool.text("type")
    function = tool.struct("function", "api.ToolFunction")
    function.text("name")
    function.text("description")
    check_schema(function.struct("parameters", "api.ToolFunctionParameters"))
    return dict(value or {})


def check_schema(parameters: Fields) -> None:
    """Check the types of the outer fields of a tool's JSON Schema."""
    for schema in parameters.object("properties", "map[string]api.ToolProperty").values():
        _check_type(parameters.below("properties", schema, "api.ToolProperty"))
    parameters.texts("required")


def _check_type(schema: Fields) -> None:
    """Check that a property's type is a text or a list of texts."""
    if not isinstance(schema.raw("type"), str):
        schema.texts("type")
