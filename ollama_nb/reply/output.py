"""What reply parsers share: their interface, the request context they get, and the output that they collect."""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ollama_nb.api.events import Delta, ParsedEvent, ToolCallDelta, ToolCalls
from ollama_nb.api.messages import Message, Think, Tool, ToolCall
from ollama_nb.reply.argument_stream import CallPiece
from ollama_nb.reply.arguments import parse_json

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class ReplyParser(Protocol):
    """Parses one reply incrementally. The events do not depend on how the text is split into pieces."""

    def report_arguments(self) -> None:
        """From now on, report the arguments of calls while they are written, as ToolCallDelta events."""

    @property
    def thinking_end(self) -> str:
        """The text to append to the reply so far to end its thinking; empty if it is not thinking now."""

    def feed(self, text: str) -> list[ParsedEvent]:
        """Parse the next piece of output text and return the events that are now certain."""

    def end(self) -> list[ParsedEvent]:
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


@dataclass(slots=True)
class _StreamedCall:
    """A call that is reported while it is written."""

    name: str
    id: str
    index: int
    pieces: list[str]

    def equals(self, parsed: ParsedCall) -> bool:
        return self.name == parsed.name and parse_json("".join(self.pieces)) == parsed.arguments


class Output:
    """Collects parsed text and calls; ``take`` returns them as events, adjacent ones of one kind merged."""

    def __init__(self) -> None:
        self.detailed = False
        """Whether ToolCallDelta events are wanted."""
        self._streamed: deque[_StreamedCall] = deque()
        self._events: list[ParsedEvent] = []
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
        if self._streamed and self._streamed[0].equals(parsed):
            streamed = self._streamed.popleft()
            call = ToolCall(parsed.name, parsed.arguments, streamed.id, streamed.index)
        else:
            call = ToolCall(parsed.name, parsed.arguments, _new_call_id(), self._calls)
            self._calls += 1
            if self.detailed:
                text = json.dumps(parsed.arguments, ensure_ascii=False)
                self._events.append(ToolCallDelta(call.index, text, call.name, call.id))
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCalls):
            self._events[-1] = ToolCalls((*last.calls, call))
        else:
            self._events.append(ToolCalls((call,)))

    def piece(self, piece: CallPiece) -> None:
        """Report a piece of the arguments of a call that is not complete yet."""
        last = self._events[-1] if self._events else None
        if piece.name:
            begun = _StreamedCall(piece.name, _new_call_id(), self._calls, [piece.text])
            self._calls += 1
            self._streamed.append(begun)
            self._events.append(ToolCallDelta(begun.index, piece.text, begun.name, begun.id))
            return
        begun = self._streamed[-1]
        begun.pieces.append(piece.text)
        if isinstance(last, ToolCallDelta):
            self._events[-1] = replace(last, arguments=last.arguments + piece.text)
        else:
            self._events.append(ToolCallDelta(begun.index, piece.text))

    def end_of_calls(self) -> None:
        """Say so if calls whose arguments were reported in pieces have turned out not to be calls."""
        if self._streamed and not any(isinstance(event, Delta) and event.tool_error for event in self._events):
            why = f"the call of {self._streamed[0].name}, whose arguments were sent in pieces, is not a valid call"
            self._events.append(Delta(tool_error=why))
        self._streamed.clear()

    def add(self, item: str | CallPiece | ParsedCall | MalformedCall) -> None:
        if isinstance(item, CallPiece):
            self.piece(item)
        elif isinstance(item, ParsedCall):
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

    def take(self) -> list[ParsedEvent]:
        """Return the collected events and forget them."""
        events, self._events = self._events, []
        return events


def _new_call_id() -> str:
    return "call_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
