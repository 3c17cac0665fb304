"""From messages to a prompt that fits: collect the messages, render them, drop whole old ones until it has room.

Fitting takes a logarithmic number of round trips. The render process renders several candidates at once and the runner
counts them at once; each round narrows the search by the number of probes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ollama_nb import families
from ollama_nb.api.messages import Message
from ollama_nb.api.models import Model
from ollama_nb.api.requests import GenerateRequest, PromptJob
from ollama_nb.errors import TemplateError
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend
from ollama_nb.template.facts import THINK_TAGS

PROBES = 8  # candidates of one round
IMAGE_TOKENS = 768  # estimated tokens of one image, for models with a projector
ROLES = ("system", "user", "assistant", "tool")
_THINK_BLOCK = re.compile(r"{}.*?{}\n*".format(*THINK_TAGS), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt and what was dropped from it. ``tokens`` is None where they were not counted.

    ``ids``: the prompt as token ids; ``text`` is empty then. ``warnings`` name messages that the template omits.
    """

    text: str
    tokens: int | None = None
    messages_dropped: int = 0
    tokens_dropped: int = 0
    image_count: int = 0
    warnings: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Probe:
    drop: int
    text: str
    tokens: int


async def fit(backend: Backend, lease: Lease, job: PromptJob, limit: int, *, image_tokens: int = 0) -> Prompt:
    """Render ``job`` and drop the oldest messages until it has at most ``limit`` tokens, specials included.

    The last message is always kept, even when it is too long. Raises TemplateError.
    """
    text = (await backend.renderer.render(job))[0]
    images = count_images(job.messages)
    if _surely_fits(text, limit) and not images:
        return Prompt(text)
    whole = (await _count(lease, job, (0,), (text,), image_tokens))[0]
    allowed = possible_drops(job.messages)
    if whole.tokens <= limit or not allowed:
        return Prompt(text, whole.tokens, image_count=images)
    best = await _best_drop(backend, lease, job, allowed, limit, image_tokens)
    kept = job.messages[best.drop :]
    return Prompt(
        best.text,
        best.tokens,
        dropped_count(job.messages, best.drop),
        max(0, whole.tokens - best.tokens),
        count_images(kept),
    )


def count_images(messages: Sequence[Message]) -> int:
    return sum(len(message.images) for message in messages)


async def _best_drop(
    backend: Backend, lease: Lease, job: PromptJob, allowed: Sequence[int], limit: int, image_tokens: int
) -> _Probe:
    """The smallest number of messages to drop. If the template requires alternating roles, whole turns are dropped."""
    try:
        return await _smallest_drop(backend, lease, job, allowed, limit, image_tokens)
    except TemplateError:
        turns = [drop for drop in allowed if job.messages[drop].role == "user"]
        if not turns or turns == list(allowed):
            raise
        return await _smallest_drop(backend, lease, job, turns, limit, image_tokens)


async def _smallest_drop(
    backend: Backend, lease: Lease, job: PromptJob, allowed: Sequence[int], limit: int, image_tokens: int
) -> _Probe:
    """The smallest allowed number with which the prompt fits; the largest one if all are too long."""
    low, high = 0, len(allowed) - 1
    best: _Probe | None = None
    while low <= high:
        places = spread(low, high)
        drops = tuple(allowed[place] for place in places)
        texts = await backend.renderer.render(replace(job, drops=drops))
        probes = await _count(lease, job, drops, texts, image_tokens)
        fitting = next((at for at, probe in enumerate(probes) if probe.tokens <= limit), None)
        if fitting is None:
            best = best or probes[-1]
            break
        best = probes[fitting]
        low, high = (places[fitting - 1] + 1 if fitting else low), places[fitting] - 1
    assert best is not None
    return best


async def _count(
    lease: Lease, job: PromptJob, drops: Sequence[int], texts: Sequence[str], image_tokens: int
) -> list[_Probe]:
    counts = await lease.runner.count_tokens(texts)
    return [
        _Probe(drop, text, count + image_tokens * count_images(job.messages[drop:]))
        for drop, text, count in zip(drops, texts, counts, strict=True)
    ]


def spread(low: int, high: int) -> list[int]:
    """At most PROBES indices from ``low`` to ``high``, evenly spread, ``high`` included."""
    count = min(PROBES, high - low + 1)
    return sorted({high - (high - low + 1) * step // count for step in range(count)})


def _surely_fits(text: str, limit: int) -> bool:
    """Whether a prompt is so short that it fits without counting.

    A tokenizer makes at most one token of a byte, and a few specials; the factor of two is a margin.
    """
    return 2 * len(text.encode("utf-8", "replace")) + 8 <= limit


def chat_messages(model: Model, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The model's system text, its stored messages, then the messages of the request.

    As in Ollama, the system text is added unless the first message of the request is a system message.
    """
    system = (Message("system", model.system),) if model.system and messages[0].role != "system" else ()
    return without_old_thinking(model, (*system, *model.messages, *messages))


def generate_messages(model: Model, request: GenerateRequest) -> tuple[Message, ...]:
    """The system text of the request or the model, the stored messages unless a context replaces them, the prompt."""
    text = request.system or model.system
    system = (Message("system", text),) if text else ()
    stored = model.messages if request.context is None else ()
    return without_old_thinking(model, (*system, *stored, Message("user", request.prompt, images=request.images)))


def without_old_thinking(model: Model, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Remove the think blocks of earlier turns for the families that were trained without them."""
    if not any(family.strip_old_thinking for family in families.of_model(model)):
        return messages
    last_user = max((at for at, message in enumerate(messages) if message.role == "user"), default=0)
    return tuple(
        replace(message, content=_THINK_BLOCK.sub("", message.content))
        if message.role == "assistant" and at < last_user
        else message
        for at, message in enumerate(messages)
    )


def omitted_roles(messages: Sequence[Message], prompt: str) -> tuple[str, ...]:
    """A warning for each message with an unusual role whose content is not in the rendered prompt.

    Which roles are valid depends on the template, so that no role is refused in advance.
    """
    return tuple(
        f'messages[{at}] was left out: the template of this model does not support the role "{message.role[:64]}"'
        + "".join(f', did you mean "{near}"?' for near in difflib.get_close_matches(message.role[:64], ROLES, n=1))
        for at, message in enumerate(messages)
        if message.role not in ROLES and message.content.strip() not in prompt
    )


def possible_drops(messages: Sequence[Message]) -> list[int]:
    """The numbers of oldest messages that may be dropped, in ascending order.

    The last message is always kept, and a tool result is never kept without its call.
    """
    return [at for at in range(1, len(messages)) if messages[at].role != "tool"]


def dropped_count(messages: Sequence[Message], drop: int) -> int:
    """How many of the ``drop`` oldest messages are dropped; system messages among them are kept."""
    return sum(message.role != "system" for message in messages[:drop])
