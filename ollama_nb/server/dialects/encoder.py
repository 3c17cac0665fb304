"""What every dialect provides: a writer for the replies of models, as JSON or as a stream, and an error format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ollama_nb.api.events import Delta, Done, Event, Rendered, Stats, ToolCalls
from ollama_nb.api.messages import ToolCall
from ollama_nb.errors import OllamaError

JSON = "application/json"
SSE = "text/event-stream"
SSE_COMMENT = b": keep-alive\n\n"  # clients skip comments


class ReplyEncoder(Protocol):
    """Writes one reply in one dialect: as a stream with ``start``, ``chunk`` …, ``end``, or at once with ``whole``.

    Every method returns bytes for the client, which may be empty.
    """

    whole_type: str
    """Content type of a reply that is sent at once."""
    stream_type: str
    """Content type of a stream."""
    keep_alive: bytes
    """Sent while a stream waits for its next event. Empty: nothing is sent, and the stream begins with an event."""

    def is_whole(self, event: Event) -> bool:
        """Whether a stream that would begin with this event is sent at once instead."""

    def start(self) -> bytes:
        """Begin a stream."""

    def chunk(self, event: Event) -> bytes:
        """Write the next event of a stream."""

    def end(self) -> bytes:
        """End a stream after its last event."""

    def fail(self, error: OllamaError) -> bytes:
        """End a stream with an error."""

    def whole(self, events: Sequence[Event]) -> bytes:
        """Write a reply of which all events are known."""


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """How a dialect writes errors, from the error and the id of the request.

    ``encode`` writes the body of an error reply, ``in_stream`` the end of a stream that has begun. ``empty_body`` is
    the message for a request without a body. ``id_header``: the dialect's own header for the id, sent besides
    ``X-Request-Id``; empty if it has none.
    """

    encode: Callable[[OllamaError, str], bytes]
    in_stream: Callable[[OllamaError, str], bytes]
    content_type: str = JSON
    empty_body: str = "missing request body"
    id_header: str = ""


@dataclass(frozen=True, slots=True)
class GatheredReply:
    """The events of one choice in one value: the joined texts, log probabilities and calls, and the last event."""

    text: Delta
    calls: tuple[ToolCall, ...]
    done: Done | None
    rendered: Rendered | None

    @classmethod
    def of(cls, events: Sequence[Event]) -> GatheredReply:
        """Gather the events of a reply with one choice."""
        deltas = [event for event in events if isinstance(event, Delta)]
        last = events[-1] if events else None
        return cls(
            text=Delta(
                "".join(delta.content for delta in deltas),
                "".join(delta.thinking for delta in deltas),
                tuple(entry for delta in deltas for entry in delta.logprobs),
                "\n".join(delta.tool_error for delta in deltas if delta.tool_error),
            ),
            calls=tuple(call for event in events if isinstance(event, ToolCalls) for call in event.calls),
            done=last if isinstance(last, Done) else None,
            rendered=last if isinstance(last, Rendered) else None,
        )

    @classmethod
    def by_choice(cls, events: Sequence[Event]) -> list[GatheredReply]:
        """Gather the events of a reply with any number of choices, in the order of their indices."""
        choices: dict[int, list[Event]] = {}
        for event in events:
            choices.setdefault(getattr(event, "choice", 0), []).append(event)
        return [cls.of(choices[index]) for index in sorted(choices)]


def warnings_of(done: Done) -> list[str]:
    """The warnings of a reply for dialects that have no other place for what was dropped from the prompt."""
    stats = done.stats or Stats()
    dropped = {"messages": stats.messages_dropped, "tokens of the prompt": stats.prompt_tokens_dropped}
    what = " and ".join(f"{count} {name}" for name, count in dropped.items() if count)
    more = [f"{what} dropped, to fit into the context of {stats.context_length} tokens"] if what else []
    return [*done.warnings, *more]


def timings(stats: Stats) -> dict[str, float]:
    """The figures of a reply as llama-server reports them: counts, milliseconds, and tokens per second."""
    found: dict[str, float] = {"cache_n": stats.cached_tokens}
    read = max(stats.prompt_tokens - stats.cached_tokens, 0)
    for name, count, seconds in (
        ("prompt", read, stats.prompt_seconds),
        ("predicted", stats.output_tokens, stats.output_seconds),
    ):
        found |= {
            f"{name}_n": count,
            f"{name}_ms": round(seconds * 1e3, 3),
            f"{name}_per_token_ms": round(seconds * 1e3 / count, 3) if count else 0,
            f"{name}_per_second": round(count / seconds, 3) if seconds else 0,
        }
    drafts = {"draft_n": stats.drafted_tokens, "draft_n_accepted": stats.accepted_tokens}
    return found | (drafts if stats.drafted_tokens else {})
