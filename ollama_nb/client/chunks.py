"""The typed chunks of a streamed reply, and the reply that they add up to.

A server streams a reply as JSON objects. :func:`parse_chunks` turns each object into chunks; a conversation with tools
adds the calls that it runs. :class:`PartialReply` collects them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ollama_nb.api.events import Stats

INTERRUPTED = "interrupted"
"""The reason of a reply that ended before the server completed it."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a Python function by a model.

    ``content`` is the result as the model receives it, None while the function runs; ``failed``: the result describes
    an error.
    """

    name: str
    arguments: Mapping[str, Any]
    content: str | None = None
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingChunk:
    """A piece of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallsChunk:
    """Tool calls as the model wrote them, in the form of Ollama's API. Nothing has run yet."""

    calls: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class InvocationChunk:
    """A function starts (``invocation.content`` is None) or has returned."""

    invocation: Invocation


@dataclass(frozen=True, slots=True)
class DoneChunk:
    """The end of a reply. ``final`` is the server's last object, ``warnings`` are the server's."""

    reason: str
    stats: Stats
    warnings: tuple[str, ...] = ()
    final: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChoiceChunk:
    """A piece of one of several choices: of any but the first one (``index`` 0), or the end of any but the last."""

    index: int
    text: str = ""
    thinking: str = ""
    reason: str = ""
    stop_sequence: str = ""


ReplyChunk = TextChunk | ThinkingChunk | ToolCallsChunk | InvocationChunk | ChoiceChunk | DoneChunk


class JsonStream(Protocol):
    """The JSON objects of a streamed reply. ``close``, from any thread, cancels the request."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...
    def __next__(self) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


class ChunkStream(Protocol):
    """The chunks of a streamed reply. ``close``, from any thread, cancels the request."""

    def __iter__(self) -> Iterator[ReplyChunk]: ...
    def __next__(self) -> ReplyChunk: ...
    def close(self) -> None: ...


class ParsedStream(Iterator[ReplyChunk]):
    """The chunks of a stream of JSON objects."""

    def __init__(self, stream: JsonStream) -> None:
        self._stream = stream
        self._chunks = (chunk for found in stream for chunk in parse_chunks(found))

    def __next__(self) -> ReplyChunk:
        return next(self._chunks)

    def close(self) -> None:
        """Cancel the request, from any thread."""
        self._stream.close()


@dataclass(slots=True)
class ToolStep:
    """What a model wrote before it called a function, and the call."""

    thinking: str
    text: str
    invocation: Invocation


@dataclass(slots=True)
class PartialChoice:
    """One of several choices, as far as it has arrived. ``reason`` is empty until it is complete."""

    text: str = ""
    thinking: str = ""
    reason: str = ""
    stop_sequence: str = ""

    def feed(self, chunk: ChoiceChunk) -> None:
        """Take the next chunk of this choice."""
        self.text += chunk.text
        self.thinking += chunk.thinking
        self.reason = chunk.reason or self.reason
        self.stop_sequence = chunk.stop_sequence or self.stop_sequence


@dataclass(slots=True)
class PartialReply:
    """A reply, as far as it has arrived.

    ``steps`` are the calls of functions, each with what the model wrote before it; ``text`` and ``thinking`` are what
    it wrote since. ``done`` is None until the reply is complete. ``others`` are the further choices by their index;
    the end of the first one is in ``first_end`` if it is not that of the whole reply.
    """

    text: str = ""
    thinking: str = ""
    steps: list[ToolStep] = field(default_factory=list)
    done: DoneChunk | None = None
    others: dict[int, PartialChoice] = field(default_factory=dict)
    first_end: PartialChoice = field(default_factory=PartialChoice)

    def feed(self, chunk: ReplyChunk) -> None:
        """Take the next chunk."""
        match chunk:
            case TextChunk(text):
                self.text += text
            case ThinkingChunk(text):
                self.thinking += text
            case InvocationChunk(invocation):
                self._feed_invocation(invocation)
            case ChoiceChunk(index):
                choice = self.others.setdefault(index, PartialChoice()) if index else self.first_end
                choice.feed(chunk)
            case DoneChunk():
                self.done = replace(chunk, reason=self.first_end.reason or chunk.reason)

    @property
    def stop_sequence(self) -> str:
        """The stop string that ended the reply, or the first one of several choices."""
        final: Mapping[str, Any] = self.done.final if self.done else {}
        return self.first_end.stop_sequence or ("" if final.get("index") else str(final.get("stop_sequence") or ""))

    def _feed_invocation(self, invocation: Invocation) -> None:
        if invocation.content is None:
            self.steps.append(ToolStep(self.thinking, self.text, invocation))
            self.text = self.thinking = ""
        else:
            self.steps[-1].invocation = invocation

    @property
    def invocations(self) -> tuple[Invocation, ...]:
        """The calls that have returned."""
        return tuple(step.invocation for step in self.steps if step.invocation.content is not None)


def parse_chunks(found: Mapping[str, Any]) -> Iterator[ReplyChunk]:
    """Yield the chunks in one object of ``/api/chat`` or ``/api/generate``.

    >>> [*parse_chunks({"message": {"content": "Hi"}, "done": False})]
    [TextChunk(text='Hi')]
    """
    if index := found.get("index"):
        yield _choice_chunk(index, found)
    elif found.get("done_reason") and not found.get("done"):
        yield ChoiceChunk(0, reason=found["done_reason"], stop_sequence=found.get("stop_sequence") or "")
    yield from (_choice_chunk(choice["index"], choice) for choice in found.get("choices") or () if choice["index"])
    message = {} if index else found.get("message") or found
    if thinking := message.get("thinking"):
        yield ThinkingChunk(thinking)
    if text := message.get("content") or message.get("response"):
        yield TextChunk(text)
    if calls := message.get("tool_calls"):
        yield ToolCallsChunk(tuple(calls))
    if found.get("done"):
        warnings = tuple(map(str, found.get("warnings") or ()))
        yield DoneChunk(found.get("done_reason") or "stop", parse_stats(found), warnings, found)


def _choice_chunk(index: int, found: Mapping[str, Any]) -> ChoiceChunk:
    message = found.get("message") or found
    text, thinking = message.get("content") or message.get("response") or "", message.get("thinking") or ""
    return ChoiceChunk(index, text, thinking, found.get("done_reason") or "", found.get("stop_sequence") or "")


def collect(chunks: Iterable[ReplyChunk]) -> PartialReply:
    """Read a stream of chunks to its end."""
    reply = PartialReply()
    for chunk in chunks:
        reply.feed(chunk)
    return reply


def parse_stats(final: Mapping[str, Any]) -> Stats:
    """The figures of a server's last object. The server reports nanoseconds, Stats holds seconds."""

    def seconds(key: str) -> float:
        return (final.get(key) or 0) / 1e9

    truncated = final.get("truncated") or {}
    return Stats(
        prompt_tokens=final.get("prompt_eval_count") or 0,
        cached_tokens=final.get("cached_tokens") or 0,
        prompt_seconds=seconds("prompt_eval_duration"),
        output_tokens=final.get("eval_count") or 0,
        output_seconds=seconds("eval_duration"),
        load_seconds=seconds("load_duration"),
        total_seconds=seconds("total_duration"),
        context_length=final.get("context_length") or 0,
        messages_dropped=truncated.get("messages_dropped") or 0,
        prompt_tokens_dropped=truncated.get("prompt_tokens_dropped") or 0,
        drafted_tokens=final.get("drafted_tokens") or 0,
        accepted_tokens=final.get("accepted_tokens") or 0,
        reasoning_tokens=final.get("reasoning_tokens") or 0,
    )
