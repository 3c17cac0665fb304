"""Events and results of requests: text deltas, tool calls, the end of a reply, progress. Times are seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
class Delta:
    """A piece of content or thinking. ``tool_error``: why content that looks like a tool call is not a valid one."""

    content: str = ""
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_error: str = ""


@dataclass(frozen=True, slots=True)
class ToolCalls:
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts and times of one request.

    ``prompt_tokens`` includes ``cached_tokens``, which were found in the prefix cache; ``prompt_seconds`` is the time
    for the other ones. ``drafted_tokens`` were proposed by speculative decoding, ``accepted_tokens`` of them verified.
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


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a reply. ``reason``: ``stop``, ``length``, ``load``, ``unload`` or ``cancelled``.

    ``stats`` is None for load and unload replies. ``run`` holds what is needed to repeat the reply, if the request asks
    for it.
    """

    reason: str
    stats: Stats | None = None
    context: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = ()
    run: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rendered prompt, for ``_debug_render_only``."""

    template: str
    image_count: int = 0


Event = Delta | ToolCalls | Done | Rendered


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
    """Vectors in the order of the inputs; ``stats`` is None if the request only loaded the model."""

    vectors: tuple[tuple[float, ...], ...]
    stats: Stats | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Indices of documents and their scores, best first. ``method`` is ``rank`` (0 to 1) or ``cosine`` (-1 to 1)."""

    results: tuple[tuple[int, float], ...]
    method: str
    prompt_tokens: int
