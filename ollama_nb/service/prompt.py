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
from ollama_nb.api.chat import GenerateRequest, PromptJob
from ollama_nb.api.messages import Message
from ollama_nb.api.models import Model
from ollama_nb.errors import TemplateError
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend

PROBES = 8
IMAGE_TOKENS = 768
"""What one image is taken to need when the model has a projector of its own."""
ROLES = ("system", "user", "assistant", "tool")
_THINK_BLOCK = re.compile(r"<think>.*?</think>\n*", re.DOTALL)


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


def chat_messages(model: Model, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The model's stored messages, then the request's; the model's system text in front of all.

    Only the first request message decides whether that system text is added, as in Ollama.
    """
    system = (Message("system", model.system),) if model.system and messages[0].role != "system" else ()
    return without_old_thinking(model, (*system, *model.messages, *messages))


def generate_messages(model: Model, request: GenerateRequest) -> tuple[Message, ...]:
    """System text (the request's, else the model's), stored messages unless a context continues them, the prompt."""
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
    """A warning for each message whose role the template has no place for: it is not in the prompt that came of it.

    Templates decide about roles, and some know more than the usual ones, so none is refused.
    """
    return tuple(
        f'messages[{at}] was left out: the template of this model has no place for the role "{message.role[:64]}"'
        + "".join(f', did you mean "{near}"?' for near in difflib.get_close_matches(message.role[:64], ROLES, n=1))
        for at, message in enumerate(messages)
        if message.role not in ROLES and message.content.strip() not in prompt
    )


def cuts(messages: Sequence[Message]) -> list[int]:
    """How many of the oldest messages may be dropped, fewest first.

    The last message always stays, and a tool's answer never outlives the call that it answers.
    """
    return [at for at in range(1, len(messages)) if messages[at].role != "tool"]


def really_dropped(messages: Sequence[Message], cut: int) -> int:
    """Messages that a cut loses: system messages before it are kept."""
    return sum(message.role != "system" for message in messages[:cut])
