"""The fields ``tool_choice`` and ``parallel_tool_calls``, as OpenAI's APIs and the native one write them."""

from __future__ import annotations

from typing import Any, Literal

from ollama_nb.api.encode import go_json, go_quote
from ollama_nb.api.messages import ANY_TOOL_OR_NONE, ToolChoice
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.gojson import Fields

_FIELD = "tool_choice"
_FORMS = (
    '"auto", "none", "required", {"type":"function","function":{"name":…}} or '
    '{"type":"allowed_tools","allowed_tools":{"mode":…,"tools":[…]}}'
)


def read_tool_choice(body: Fields) -> ToolChoice:
    """The field ``tool_choice``; without it, the model may call any tool.

    Both forms of OpenAI are read: that of chat completions (``{"type": "function", "function": {"name": "f"}}``) and
    the flat one of responses (``{"type": "function", "name": "f"}``), for ``allowed_tools`` as well. Raises BadRequest.
    """
    value = body.raw(_FIELD)
    match value:
        case None:
            return ANY_TOOL_OR_NONE
        case "auto" | "none" | "required":
            return ToolChoice(value)
        case {"type": "function" | "custom"}:
            return ToolChoice("required", (_name(value),))
        case {"type": "allowed_tools"}:
            return _allowed(value)
    raise BadRequest(f"invalid tool_choice {_shown(value)}: expected {_FORMS}", field=_FIELD)


def read_parallel_tool_calls(body: Fields) -> bool:
    """The field ``parallel_tool_calls``; the default is True."""
    return body.flag("parallel_tool_calls") is not False


def _allowed(value: dict[str, Any]) -> ToolChoice:
    inner = value.get("allowed_tools", value)
    mode: Literal["auto", "required"]
    match inner:
        case {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            return ToolChoice(mode, tuple(dict.fromkeys(map(_name, tools))))
    message = 'invalid tool_choice: allowed_tools needs a "mode", "auto" or "required", and a list of "tools"'
    raise BadRequest(message, field=_FIELD)


def _name(value: Any) -> str:
    """The name in ``{"function": {"name": …}}`` or ``{"name": …}``."""
    match value:
        case {"function": {"name": str(name)}} | {"name": str(name)} if name:
            return name
    raise BadRequest(f"invalid tool_choice: {_shown(value)} does not name a function", field=_FIELD)


def _shown(value: Any) -> str:
    return go_quote(value[:64]) if isinstance(value, str) else go_json(value)[:200]
