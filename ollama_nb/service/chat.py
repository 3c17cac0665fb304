"""POST /api/chat: a conversation goes in, a reply comes out in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from ollama_nb.api.chat import JINJA, ChatRequest, PromptJob
from ollama_nb.api.events import Done, Event
from ollama_nb.errors import BadRequest, ContextOverflow
from ollama_nb.runner import wire
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend
from ollama_nb.service.conversation import chat_messages, unheard
from ollama_nb.service.inference import Plan, Ready, check_logprobs, get_ready, has_images, load_only, run
from ollama_nb.service.prompt import IMAGE_TOKENS, Prompt, fit
from ollama_nb.service.requests import LiveRequest
from ollama_nb.service.resolve import find

CHATML_STOPS = ("<|im_start|>", "<|im_end|>")


async def chat(backend: Backend, request: ChatRequest) -> AsyncGenerator[Event, None]:
    """Yield the reply and a final Done; without messages, one Done that says ``load`` or ``unload``.

    Errors that need no answer of the model are raised before the first event.
    """
    check_logprobs(request)
    if not request.model:
        raise BadRequest("model is required")
    with backend.requests.enter(request.request_id, request.model, "chat") as live:
        model = await find(backend, request.model)
        if request.unloads:
            await backend.pool.unload(model)
            yield Done("unload")
            return
        extra = ("tools",) if request.tools else ()
        images = has_images(request.messages)
        ready = await get_ready(backend, request, model, "chat", extra=extra, images=images)
        if not request.messages:
            yield await load_only(backend, request, ready, live)
            return
        async with aclosing(_reply(backend, request, ready, live)) as events:
            async for event in events:
                yield event


def _reply(backend: Backend, request: ChatRequest, ready: Ready, live: LiveRequest) -> AsyncGenerator[Event, None]:
    if not ready.prompting.template and not ready.options.stop:
        # The renderer's stand-in for a missing template is ChatML: end where its turns end.
        ready = replace(ready, options=replace(ready.options, stop=CHATML_STOPS))

    # A chat that Jinja renders is refused when its last message is too long, as it is by Ollama: cutting tokens out of
    # the middle would take the template apart.
    cut_tokens = ready.prompting.kind != JINJA
    write = partial(_write, backend, request, ready)
    plan = Plan(write, cut_tokens=cut_tokens, tools=request.tools, last=request.messages[-1])
    return run(backend, request, ready, plan, live)


async def _write(backend: Backend, request: ChatRequest, ready: Ready, lease: Lease) -> Prompt:
    """The prompt, with a warning for each message that the template leaves out. Raises BadRequest if strict."""
    prompt = await _render(backend, request, ready, lease)
    warnings = () if prompt.messages_dropped else unheard(request.messages, prompt.text)
    if warnings and request.strict:
        raise BadRequest("; ".join(warnings))
    return replace(prompt, warnings=warnings)


async def _render(backend: Backend, request: ChatRequest, ready: Ready, lease: Lease) -> Prompt:
    """Render the conversation; drop old messages until it fits, if the request allows that.

    Raises ContextOverflow when no message may be cut and the last one alone does not fit.
    """
    job = chat_job(request, ready, lease.loaded)
    if not request.truncate:
        return Prompt((await backend.renderer.render(job))[0])
    image_tokens = IMAGE_TOKENS if ready.model.projectors else 0
    limit = lease.num_ctx - 1
    prompt = await fit(backend, lease, job, limit, image_tokens=image_tokens)
    if request.truncate == "messages" and (prompt.tokens or 0) > limit:
        raise ContextOverflow(
            f"the last message and the system prompt have {prompt.tokens} tokens, but only {limit} fit into the "
            "context; shorten them or increase num_ctx"
        )
    return prompt


def chat_job(request: ChatRequest, ready: Ready, loaded: wire.Loaded) -> PromptJob:
    """The whole conversation, to be rendered."""
    family = ready.prompting.family
    tools = family.offered(request.tools) if family is not None else request.tools
    return replace(ready.job(chat_messages(ready.model, request.messages), loaded), tools=tools)
