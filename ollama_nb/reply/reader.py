"""One reply, read while it is written: thinking first, then text and tool calls, as events.

Rule: no text is ever lost, and how the text was cut into pieces changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.api.messages import Tool
from ollama_nb.reply.output import Output
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
        self._out = Output()

    def feed(self, text: str) -> list[Delta | ToolCalls]:
        """The events that ``text`` makes certain; none when all of it must be held back."""
        thinking, content = self._thinking.feed(text) if self._thinking else ("", text)
        self._tell(thinking, content)
        return self._out.take()

    def end(self) -> list[Delta | ToolCalls]:
        """No more text comes: everything held back comes out."""
        self._tell(*(self._thinking.end() if self._thinking else ("", "")))
        for item in self._tools.end() if self._tools else ():
            self._out.add(item)
        return self._out.take()

    def _tell(self, thinking: str, content: str) -> None:
        self._out.thinking(thinking)
        for item in self._tools.feed(content) if self._tools else (content,):
            self._out.add(item)
