"""Parsed replies in a form that can be compared, however the text was split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.reply.output import ReplyParser


def read_all(reader: ReplyParser, pieces: Iterable[str]) -> list[Delta | ToolCalls]:
    return [event for piece in pieces for event in reader.feed(piece)] + reader.end()


def in_pieces(text: str, size: int) -> list[str]:
    """Pieces of ``size`` characters; 0: the whole text at once."""
    return [text[at : at + size] for at in range(0, len(text), size)] if size else [text]


def outcome(events: Sequence[Delta | ToolCalls]) -> dict[str, Any]:
    """Content, thinking, calls and tool errors, each joined; empty ones are omitted."""
    deltas = [event for event in events if isinstance(event, Delta)]
    calls = [call for event in events if isinstance(event, ToolCalls) for call in event.calls]
    found = {
        "content": "".join(delta.content for delta in deltas),
        "thinking": "".join(delta.thinking for delta in deltas),
        "calls": [{"name": call.name, "arguments": dict(call.arguments)} for call in calls],
        "tool_error": "; ".join(delta.tool_error for delta in deltas if delta.tool_error),
    }
    return {key: value for key, value in found.items() if value}


def in_order(events: Sequence[Delta | ToolCalls]) -> list[tuple[str, Any]]:
    """The events in order, neighbours of one kind joined, so that every way to split the text gives the same."""
    told: list[tuple[str, Any]] = []
    for event in events:
        if isinstance(event, ToolCalls):
            told += [("call", (call.name, dict(call.arguments), call.index)) for call in event.calls]
            continue
        for kind, text in (("thinking", event.thinking), (f"content {event.tool_error}", event.content)):
            if text and told and told[-1][0] == kind and not event.tool_error:
                told[-1] = (kind, told[-1][1] + text)
            elif text:
                told.append((kind, text))
    return told
