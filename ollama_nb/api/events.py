"""Events and results of requests: text deltas, tool calls, the end of a reply, progress. Times are seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.messages import ToolCall


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's bytes and the natural logarithm of its probability; ``top`` holds the most probable tokens."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The prompt has been read; yielded before the first text, if the request asks for ``detailed`` events."""

    prompt_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of content or thinking. ``tool_error``: why content that looks like a tool call is not a valid one.

    ``choice`` is the index of the reply among those that the request asks for (see ``Inference.n``).
    """

    content: str = ""
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_error: str = ""
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of the JSON text of a call's arguments, yielded if the request asks for ``detailed`` events.

    ``index`` is that of the call in its reply; the first piece of a call has its ``name`` and ``id``. A ToolCalls event
    with the complete call follows, unless the text turns out not to be a valid call.
    """

    index: int
    arguments: str = ""
    name: str = ""
    id: str = ""
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCalls:
    calls: tuple[ToolCall, ...]
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts and times of one request.

    ``prompt_tokens`` includes ``cached_tokens``, which were found in the prefix cache; ``prompt_seconds`` is the time
    for the other ones. ``drafted_tokens`` were proposed by speculative decoding, ``accepted_tokens`` of them verified.
    ``reasoning_tokens`` of the ``output_tokens`` are thinking. With several choices, the prompt counts once and the
    output of all choices together.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    output_tokens: int = 0
    output_seconds: float = 0.0
    load_seconds: float = 0.0
    total_seconds: float = 0.0
    context_length: int = 0
    messages_dropped: int = 0
    prompt_tokens_dropped: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a reply. ``reason``: ``stop``, ``length``, ``load``, ``unload`` or ``cancelled``.

    Every choice has one; the last one to be yielded has the ``stats`` and ``warnings`` of all choices together, the
    others have none. ``stats`` is None for load and unload replies. ``run`` holds what is needed to repeat the reply,
    if the request asks for it. ``stop_sequence`` is the stop string that ended the reply, if one did.
    """

    reason: str
    stats: Stats | None = None
    context: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = ()
    run: Mapping[str, Any] | None = None
    choice: int = 0
    stop_sequence: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rendered prompt, for ``_debug_render_only``."""

    template: str
    image_count: int = 0


ParsedEvent = Delta | ToolCallDelta | ToolCalls
"""What the text of a reply is parsed into."""

Event = PromptRead | ParsedEvent | Done | Rendered


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of a pull, push or create. ``total`` and ``completed`` are bytes; the last line has the ``warnings``."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0
    warnings: tuple[str, ...] = ()


Report = Callable[[Progress], None]
"""Receives the progress of blocking work; called in the thread that does the work."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors in the order of the inputs; ``stats`` is None if the request only loaded the model.

    ``truncated``: the indices of the inputs that were too long, of which only the beginning was used.
    """

    vectors: Sequence[tuple[float, ...]]
    stats: Stats | None = None
    truncated: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """Indices of documents and their scores, best first. ``method`` is ``rank`` (0 to 1) or ``cosine`` (-1 to 1)."""

    results: tuple[tuple[int, float], ...]
    method: str
    prompt_tokens: int
    warnings: tuple[str, ...] = ()
    truncated: tuple[int, ...] = ()
