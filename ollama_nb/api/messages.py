"""A conversation: messages, tool calls, and tools as the client sent them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Tool = Mapping[str, Any]
"""A tool's JSON as the client sent it, key order kept: ``{"type": "function", "function": {…}}``."""

Think = bool | Literal["low", "medium", "high", "max"] | None
"""Asked for thinking: on, off, a level, or not said."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made; ``arguments`` is always an object."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""
    index: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One message; ``images`` are raw bytes (the JSON form is base64)."""

    role: str
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""
