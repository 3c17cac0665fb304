"""One reply, read while it is written: thinking first, then text and tool calls, as events.

Rule: no text is ever lost, and how the text was cut into pieces changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.api.messages import Tool, ToolCall
from ollama_nb.reply.thinking import ThinkingSplitter
from ollama_nb.reply.tools import ToolParser


class Reader:
    """``thinking``: opening and closing tag, or None to leave thinking in the content.

    ``inside_thinking``: the prompt already ended with the opening tag. Without ``tools`` and ``tool_marker`` calls
    stay text.
    """

    def __init__(
        self,
        thinking: tuple[str, str] | None = None,
        inside_thinking: bool = False,
        tools: Sequence[Tool] = (),
        tool_marker: str | None = None,
    ) -> None:
        self._thinking = ThinkingSplitter(*thinking, inside=inside_thinking) if thinking else None
        self._tools = ToolParser(tools, tool_marker) if tools and tool_marker else None

    def feed(self, text: str) -> list[Delta | ToolCalls]:
        """The events that ``text`` makes certain; none when all of it must be held back."""
        thinking, content = self._thinking.feed(text) if self._thinking else ("", text)
        return _events(thinking, self._content(content))

    def end(self) -> list[Delta | ToolCalls]:
        """No more text comes: everything held back comes out."""
        thinking, content = self._thinking.end() if self._thinking else ("", "")
        items = self._content(content)
        if self._tools:
            items += self._tools.end()
        return _events(thinking, items)

    def _content(self, text: str) -> list[str | ToolCall]:
        if not text:
            return []
        return self._tools.feed(text) if self._tools else [text]


def _events(thinking: str, items: Sequence[str | ToolCall]) -> list[Delta | ToolCalls]:
    """Join neighbours: one delta for text that follows thinking or text, one event for calls in a row."""
    events: list[Delta | ToolCalls] = []
    for calls, run in groupby(items, lambda item: isinstance(item, ToolCall)):
        if calls:
            events.append(ToolCalls(tuple(item for item in run if isinstance(item, ToolCall))))
        else:
            events.append(Delta("".join(item for item in run if isinstance(item, str))))
    if not thinking:
        return events
    if events and isinstance(events[0], Delta):
        return [replace(events[0], thinking=thinking), *events[1:]]
    return [Delta(thinking=thinking), *events]
