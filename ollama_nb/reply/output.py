"""What a reply was found to say, in order, and the events that tell it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.api.messages import ToolCall

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def new_call_id() -> str:
    return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(8))


@dataclass(frozen=True, slots=True)
class Found:
    """A call as the model wrote it: the tool's name and its arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Malformed:
    """Text that was meant as a call and cannot be read as one. ``why`` is for the user; empty: it was a guess."""

    text: str
    why: str = ""


class Output:
    """Gathers what is certain; ``take`` gives it out as events, neighbours of one kind joined."""

    def __init__(self) -> None:
        self._events: list[Delta | ToolCalls] = []
        self._calls = 0
        self.has_content = False
        """Something was said that is neither thinking nor a call, blanks aside."""

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

    def call(self, found: Found) -> None:
        call = ToolCall(found.name, found.arguments, new_call_id(), self._calls)
        last = self._events[-1] if self._events else None
        self._calls += 1
        if isinstance(last, ToolCalls):
            self._events[-1] = ToolCalls((*last.calls, call))
        else:
            self._events.append(ToolCalls((call,)))

    def add(self, item: str | Found | Malformed) -> None:
        if isinstance(item, Found):
            self.call(item)
        elif isinstance(item, Malformed):
            self.malformed(item.text, item.why)
        else:
            self.content(item)

    def malformed(self, text: str, why: str) -> None:
        """Text of a call that cannot be read: content, and the reason beside it."""
        if not why:
            self.content(text)
        elif text:
            self.has_content = True
            self._events.append(Delta(text, tool_error=why))

    def take(self) -> list[Delta | ToolCalls]:
        events, self._events = self._events, []
        return events
