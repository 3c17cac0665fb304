"""A conversation made to fit: render, count, and leave out whole old messages until the prompt has room.

Rule: at most a logarithmic number of round trips. Several candidate lengths are rendered at once in the render
process and counted at once in the runner; each round narrows the search by the number of probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ollama_nb.api.chat import PromptJob
from ollama_nb.api.messages import Message
from ollama_nb.errors import TemplateError
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend
from ollama_nb.service.conversation import cuts, really_dropped

PROBES = 8
IMAGE_TOKENS = 768
"""What one image is taken to need when the model has a projector of its own."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text ready for the runner, and what was left out of it. ``tokens`` None: not counted.

    ``warnings``: of messages that the template left out.
    """

    text: str
    tokens: int | None = None
    messages_dropped: int = 0
    tokens_dropped: int = 0
    image_count: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Probe:
    cut: int
    text: str
    tokens: int


async def fit(backend: Backend, lease: Lease, job: PromptJob, limit: int, *, image_tokens: int = 0) -> Prompt:
    """Render ``job`` and drop the oldest messages until it has at most ``limit`` tokens, specials included.

    When even the last message alone is too long, it is what remains: the runner decides about it.
    Raises TemplateError.
    """
    text = (await backend.renderer.render(job))[0]
    images = count_images(job.messages)
    if _surely_fits(text, limit) and not images:
        return Prompt(text)
    whole = (await _weigh(lease, job, (0,), (text,), image_tokens))[0]
    allowed = cuts(job.messages)
    if whole.tokens <= limit or not allowed:
        return Prompt(text, whole.tokens, image_count=images)
    best = await _best_cut(backend, lease, job, allowed, limit, image_tokens)
    kept = job.messages[best.cut :]
    return Prompt(
        best.text,
        best.tokens,
        really_dropped(job.messages, best.cut),
        max(0, whole.tokens - best.tokens),
        count_images(kept),
    )


def count_images(messages: Sequence[Message]) -> int:
    return sum(len(message.images) for message in messages)


async def _best_cut(
    backend: Backend, lease: Lease, job: PromptJob, allowed: Sequence[int], limit: int, image_tokens: int
) -> _Probe:
    """The smallest cut that fits. Templates that want user and assistant to take turns are cut between whole turns."""
    try:
        return await _shortest_cut(backend, lease, job, allowed, limit, image_tokens)
    except TemplateError:
        turns = [cut for cut in allowed if job.messages[cut].role == "user"]
        if not turns or turns == list(allowed):
            raise
        return await _shortest_cut(backend, lease, job, turns, limit, image_tokens)


async def _shortest_cut(
    backend: Backend, lease: Lease, job: PromptJob, allowed: Sequence[int], limit: int, image_tokens: int
) -> _Probe:
    """The smallest allowed cut that fits; the largest one when none does."""
    low, high = 0, len(allowed) - 1
    best: _Probe | None = None
    while low <= high:
        places = spread(low, high)
        drops = tuple(allowed[place] for place in places)
        texts = await backend.renderer.render(replace(job, drops=drops))
        probes = await _weigh(lease, job, drops, texts, image_tokens)
        fitting = next((at for at, probe in enumerate(probes) if probe.tokens <= limit), None)
        if fitting is None:
            best = best or probes[-1]
            break
        best = probes[fitting]
        low, high = (places[fitting - 1] + 1 if fitting else low), places[fitting] - 1
    assert best is not None
    return best


async def _weigh(
    lease: Lease, job: PromptJob, drops: Sequence[int], texts: Sequence[str], image_tokens: int
) -> list[_Probe]:
    counts = await lease.runner.count_tokens(texts)
    return [
        _Probe(cut, text, count + image_tokens * count_images(job.messages[cut:]))
        for cut, text, count in zip(drops, texts, counts, strict=True)
    ]


def spread(low: int, high: int) -> list[int]:
    """At most PROBES places from ``low`` to ``high``, evenly spread, the last one always ``high``."""
    count = min(PROBES, high - low + 1)
    return sorted({high - (high - low + 1) * step // count for step in range(count)})


def _surely_fits(text: str, limit: int) -> bool:
    """A token covers a byte at least, but for a few that a tokenizer adds: a short prompt need not be counted."""
    return 2 * len(text.encode("utf-8", "replace")) + 8 <= limit
