"""What chat and generate share: the checks before a model is loaded, then load, prompt, answer, end.

The order of the checks and their texts are what clients see first of all errors.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any

from ollama_nb import families
from ollama_nb.api.chat import Inference, PromptJob
from ollama_nb.api.events import Delta, Done, Event, Rendered, Stats
from ollama_nb.api.messages import Message, Think, Tool
from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.options import Options
from ollama_nb.errors import BadRequest, Cancelled, ImagesUnsupported
from ollama_nb.runner import wire
from ollama_nb.runner.pool import Lease
from ollama_nb.service import capabilities as caps
from ollama_nb.service import templates
from ollama_nb.service.answer import Answer
from ollama_nb.service.backend import Backend
from ollama_nb.service.constraint import constraint_text
from ollama_nb.service.load import acquire
from ollama_nb.service.options import options_in_force, seeded
from ollama_nb.service.passes import Ask
from ollama_nb.service.prompt import Prompt
from ollama_nb.service.record import run_record
from ollama_nb.service.requests import LiveRequest
from ollama_nb.service.resolve import weights_header

MOST_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Ready:
    """A request that passed every check. ``think`` is what templates are told: None stays "not said"."""

    model: Model
    gguf: GGUF
    prompting: templates.ChatFormat
    think: Think
    options: Options
    format: str
    warnings: tuple[str, ...]

    def job(self, messages: tuple[Message, ...], loaded: wire.Loaded) -> PromptJob:
        """What a prompt of these messages is rendered from."""
        return PromptJob(
            kind=self.prompting.kind,
            template=self.prompting.template,
            renderer=self.prompting.renderer,
            messages=messages,
            think=self.think,
            bos=loaded.bos,
            eos=loaded.eos,
            add_bos=loaded.add_bos,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request that passed its checks goes on.

    ``write`` makes the prompt once the model is loaded. ``cut_tokens``: a prompt that is still too long loses tokens
    in its middle, instead of being refused. ``last``: the message that the reply follows or goes on with.
    """

    write: Callable[[Lease], Awaitable[Prompt]]
    cut_tokens: bool = True
    parse: bool = True
    tools: tuple[Tool, ...] = ()
    last: Message | None = None
    return_tokens: bool = False


def check_logprobs(request: Inference) -> None:
    """The first of all checks, even before the model's name."""
    if not 0 <= request.top_logprobs <= MOST_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be between 0 and {MOST_TOP_LOGPROBS}")


async def get_ready(
    backend: Backend, request: Inference, model: Model, use: str, *, extra: Collection[str] = (), images: bool = False
) -> Ready:
    """Thinking, then capabilities, then options: the checks that need the model's files but not its weights loaded."""
    gguf = await weights_header(backend, model, request.model)
    go_template = backend.settings.go_template
    has = caps.capabilities(model, gguf, go_template)
    think = request.think
    if think:
        caps.check_thinking(model, request.model, has)
    elif think is None and "thinking" in has:
        think = True
    caps.check(model, request.model, has, use, extra)
    if images:
        _refuse_images(request.model, has)
    options, warnings = options_in_force(model, request.options, request.ignored, strict=request.strict)
    prompting = templates.chat_format(model, gguf, go_template)
    if prompting.family is not None:
        think = prompting.family.think_levels.get(think, think)
    return Ready(model, gguf, prompting, think, seeded(options), constraint_text(request), warnings)


async def load_only(backend: Backend, request: Inference, ready: Ready, live: LiveRequest) -> Done:
    """A request without a prompt loads the model and sets its keep_alive."""
    try:
        async with await acquire(backend, ready.model, ready.gguf, ready.options, request.keep_alive, live):
            return Done("load", warnings=ready.warnings)
    except Cancelled:
        return Done("cancelled")


async def run(
    backend: Backend, request: Inference, ready: Ready, plan: Plan, live: LiveRequest
) -> AsyncGenerator[Event, None]:
    """Load, write the prompt, answer. Closing the generator cancels; so does ``Requests.cancel``, with a final Done."""
    load_seconds = 0.0
    async with AsyncExitStack() as stack:
        try:
            lease = await acquire(backend, ready.model, ready.gguf, ready.options, request.keep_alive, live)
            await stack.enter_async_context(lease)
            load_seconds = live.seconds
            with live.interruptible():
                prompt = await plan.write(lease)
        except Cancelled:
            yield Done("cancelled", Stats(load_seconds=load_seconds, total_seconds=live.seconds))
            return
        live.prompt_tokens = prompt.tokens or 0
        if request.render_only:
            yield Rendered(prompt.text, prompt.image_count)
            return
        answer = Answer(lease.runner, live, _ask(request, ready, plan, lease, prompt))
        warnings = [*ready.warnings, *prompt.warnings]
        async with aclosing(answer.events()) as events:
            async for event in events:
                if isinstance(event, Delta) and event.tool_error:
                    warnings.append(f"a tool call could not be read and is shown as text: {event.tool_error}")
                yield event
        stats = _complete(answer.stats(), prompt, lease, load_seconds, live)
        record = _record(ready, lease, prompt) if request.run_record else None
        yield Done(answer.reason, stats, answer.context, tuple(warnings), record)


def _ask(request: Inference, ready: Ready, plan: Plan, lease: Lease, prompt: Prompt) -> Ask:
    shift = request.shift if request.shift is not None else families.can_shift(ready.model.config.model_family)
    return Ask(
        prompt=prompt.text,
        options=ready.options,
        num_ctx=lease.num_ctx,
        adapters=lease.adapters,
        shift=shift,
        truncate=request.truncate is True and plan.cut_tokens,
        logprobs=request.top_logprobs if request.logprobs else -1,
        format=ready.format,
        return_tokens=plan.return_tokens,
        thinking=ready.prompting.thinking if ready.think and plan.parse else None,
        tools=plan.tools,
        tool_marker=ready.prompting.tool_marker,
        family=ready.prompting.family if plan.parse else None,
        think=ready.think,
        last=plan.last,
    )


def _record(ready: Ready, lease: Lease, prompt: Prompt) -> dict[str, Any]:
    return run_record(
        model=ready.model,
        template=ready.prompting.template,
        options=ready.options,
        num_ctx=lease.num_ctx,
        prompt=prompt.text,
        build=lease.loaded.build,
    )


def _complete(stats: Stats, prompt: Prompt, lease: Lease, load_seconds: float, live: LiveRequest) -> Stats:
    return replace(
        stats,
        load_seconds=load_seconds,
        total_seconds=live.seconds,
        context_length=lease.num_ctx,
        messages_dropped=prompt.messages_dropped,
        prompt_tokens_dropped=prompt.tokens_dropped + stats.prompt_tokens_dropped,
    )


def _refuse_images(text: str, has: Collection[str]) -> None:
    if "vision" not in has:
        raise ImagesUnsupported(f'"{text}" does not support vision: send the message without images')
    raise ImagesUnsupported("this version does not read images yet: send the message without them")


def has_images(messages: Collection[Message]) -> bool:
    return any(message.images for message in messages)
