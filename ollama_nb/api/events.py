"""What comes out while work is done: deltas, calls, the end, and progress. Times are seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.messages import ToolCall


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with the natural logarithm of its probability; ``token`` is the token's own bytes."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of answer or of thinking. ``tool_error``: the content was meant as a call, and why it is none."""

    content: str = ""
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_error: str = ""


@dataclass(frozen=True, slots=True)
class ToolCalls:
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts and times of one request. ``prompt_tokens`` includes ``cached_tokens``; ``prompt_seconds`` does not.

    ``drafted_tokens`` were guessed and read ahead, ``accepted_tokens`` of them were right, each a step saved.
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

    ``stats`` is None for load and unload replies, which carry no figures. ``run``: a record by which it can be
    repeated, when asked for.
    """

    reason: str
    stats: Stats | None = None
    context: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = ()
    run: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt as it would be sent, for ``_debug_render_only``."""

    template: str
    image_count: int = 0


Event = Delta | ToolCalls | Done | Rendered


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of a pull, push or create; ``total`` and ``completed`` are bytes. ``warnings`` come with the last."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0
    warnings: tuple[str, ...] = ()


Report = Callable[[Progress], None]
"""Takes the lines of blocking work, from its own thread."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors in the order of the inputs (``None`` stats: the request only loaded the model)."""

    vectors: tuple[tuple[float, ...], ...]
    stats: Stats | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Indices of documents with their scores, best first; ``method``: ``rank`` (0 to 1) or ``cosine`` (-1 to 1)."""

    results: tuple[tuple[int, float], ...]
    method: str
    prompt_tokens: int
