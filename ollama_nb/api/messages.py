"""A conversation: messages, tool calls and tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Tool = Mapping[str, Any]
"""A tool's JSON as the client sent it, in the same order: ``{"type": "function", "function": {…}}``."""

Think = bool | Literal["low", "medium", "high", "max"] | None
"""The thinking that a request asks for: on, off, a level, or None for the model's default."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may call tools (``auto``), must (``required``), or must not (``none``).

    ``names``: the only tools that may be called; empty: all tools of the request.
    """

    mode: Literal["auto", "required", "none"] = "auto"
    names: tuple[str, ...] = ()


ANY_TOOL_OR_NONE = ToolChoice()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of a model; ``arguments`` is always a JSON object."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""
    index: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``images`` are raw bytes; in JSON they are base64."""

    role: str
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""
