"""POST /api/generate: one prompt, by a template or raw; made of the same pieces as chat."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from ollama_nb.api.chat import GO, GenerateRequest, PromptJob
from ollama_nb.api.events import Done, Event
from ollama_nb.errors import BadRequest, ModelNotFound, Unsupported
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend
from ollama_nb.service.conversation import generate_messages
from ollama_nb.service.inference import Plan, Ready, check_logprobs, get_ready, load_only, run
from ollama_nb.service.prompt import Prompt, fit
from ollama_nb.service.requests import LiveRequest
from ollama_nb.service.resolve import find
from ollama_nb.service.tokens import text_of


async def generate(backend: Backend, request: GenerateRequest) -> AsyncGenerator[Event, None]:
    """Yield the answer and a final Done; with an empty prompt, one Done that says ``load`` or ``unload``.

    Errors that need no answer of the model are raised before the first event.
    """
    check_logprobs(request)
    if not request.model:
        raise ModelNotFound("model '' not found")
    with backend.requests.enter(request.request_id, request.model, "generate") as live:
        model = await find(backend, request.model)
        if request.unloads:
            await backend.pool.unload(model)
            yield Done("unload")
            return
        if "image" in model.config.capabilities:
            raise Unsupported("image generation models are not currently supported")
        if request.raw and (request.template or request.system or request.context):
            raise BadRequest("raw mode does not support template, system, or context")
        extra = ("insert",) if request.suffix else ()
        images = bool(request.images)
        ready = await get_ready(backend, request, model, "generate", extra=extra, images=images)
        if not request.prompt:
            yield await load_only(backend, request, ready, live)
            return
        async with aclosing(_reply(backend, request, ready, live)) as events:
            async for event in events:
                yield event


def _reply(backend: Backend, request: GenerateRequest, ready: Ready, live: LiveRequest) -> AsyncGenerator[Event, None]:
    write = partial(_write, backend, request, ready)
    plan = Plan(write, parse=not request.raw, return_tokens=not request.raw)
    return run(backend, request, ready, plan, live)


async def _write(backend: Backend, request: GenerateRequest, ready: Ready, lease: Lease) -> Prompt:
    """The prompt as it was sent (raw, or no template anywhere), or rendered; a context's text goes in front."""
    if request.raw:
        return Prompt(request.prompt)
    job = _job(request, ready, lease)
    if job is None:
        prompt = Prompt(request.prompt)
    elif job.suffix or not request.truncate:
        prompt = Prompt((await backend.renderer.render(job))[0])
    else:
        prompt = await fit(backend, lease, job, lease.num_ctx - 1)
    if request.context:
        before = await text_of(lease.runner, request.context, request.model)
        # What goes on does not begin again; where the tokenizer adds no BOS, the same text may begin every turn.
        text = prompt.text.removeprefix(lease.loaded.bos if lease.loaded.add_bos else "")
        prompt = replace(prompt, text=before + text, tokens=None)
    return prompt


def _job(request: GenerateRequest, ready: Ready, lease: Lease) -> PromptJob | None:
    """Suffix calls and a request's own template are always Go templates. None: no template anywhere."""
    if request.suffix:
        template = request.template or ready.model.template or ""
        job = replace(ready.job((), lease.loaded), kind=GO, template=template, renderer="")
        return replace(job, prompt=request.prompt, suffix=request.suffix)
    job = ready.job(generate_messages(ready.model, request), lease.loaded)
    if request.template:
        return replace(job, kind=GO, template=request.template, renderer="")
    return job if job.template else None
