"""What reply parsers share: their interface, the request context they get, and the output that they collect."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.api.messages import Message, Think, Tool, ToolCall

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class ReplyParser(Protocol):
    """Parses one reply incrementally. The events do not depend on how the text is split into pieces."""

    @property
    def thinking_end(self) -> str:
        """The text to append to the reply so far to end its thinking; empty if it is not thinking now."""

    def feed(self, text: str) -> list[Delta | ToolCalls]:
        """Parse the next piece of output text and return the events that are now certain."""

    def end(self) -> list[Delta | ToolCalls]:
        """Return the events for all text that is still held back. Call it once, after the last piece."""


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """The parts of a request that change how its reply is parsed.

    ``tools`` are the offered tools, ``think`` the requested thinking, ``last`` the last message of the conversation.
    """

    tools: tuple[Tool, ...] = ()
    think: Think = None
    last: Message | None = None

    @property
    def continues(self) -> bool:
        """The prompt ends inside an assistant message, which the reply continues."""
        return self.last is not None and self.last.role == "assistant" and bool(self.last.content)

    def thinks(self, *, by_default: bool) -> bool:
        """Whether thinking is on; ``by_default`` applies when the request does not set it."""
        return by_default if self.think is None else bool(self.think)


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A tool call as the model wrote it: the tool's name and its arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """The text of a tool call that cannot be parsed.

    ``why`` is the reason, for the user. It is empty where the text was only possibly a call; it is then plain content.
    """

    text: str
    why: str = ""


class Output:
    """Collects parsed text and calls; ``take`` returns them as events, adjacent ones of one kind merged."""

    def __init__(self) -> None:
        self._events: list[Delta | ToolCalls] = []
        self._calls = 0
        self.has_content = False
        """Some content other than white space was added."""

    def thinking(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if not text:
            return
        if isinstance(last, Delta) and not last.content and not last.tool_error:
            self._events[-1] = replace(last, thinking=last.thinking + text)
        else:
            self._events.append(Delta(thinking=text))

    def content(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if not text:
            return
        self.has_content = self.has_content or not text.isspace()
        if isinstance(last, Delta) and not last.tool_error:
            self._events[-1] = replace(last, content=last.content + text)
        else:
            self._events.append(Delta(text))

    def call(self, parsed: ParsedCall) -> None:
        call = ToolCall(parsed.name, parsed.arguments, _new_call_id(), self._calls)
        last = self._events[-1] if self._events else None
        self._calls += 1
        if isinstance(last, ToolCalls):
            self._events[-1] = ToolCalls((*last.calls, call))
        else:
            self._events.append(ToolCalls((call,)))

    def add(self, item: str | ParsedCall | MalformedCall) -> None:
        if isinstance(item, ParsedCall):
            self.call(item)
        elif isinstance(item, MalformedCall):
            self.malformed(item.text, item.why)
        else:
            self.content(item)

    def malformed(self, text: str, why: str) -> None:
        """Add the text of an unparsable call as content, with the reason as ``tool_error``."""
        if not why:
            self.content(text)
        elif text:
            self.has_content = True
            self._events.append(Delta(text, tool_error=why))

    def take(self) -> list[Delta | ToolCalls]:
        """Return the collected events and forget them."""
        events, self._events = self._events, []
        return events


def _new_call_id() -> str:
    return "call_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
