"""POST /api/generate: one prompt, rendered by a template or raw."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial

from ollama_nb.api.events import Event
from ollama_nb.api.requests import GO, GenerateRequest, PromptJob
from ollama_nb.errors import BadRequest, ModelNotFound, Unsupported
from ollama_nb.runner.pool import Lease
from ollama_nb.service import capabilities as caps
from ollama_nb.service.backend import Backend
from ollama_nb.service.generation import Generation, ReplyFormat, check_numbers, new_generation
from ollama_nb.service.infill import as_suffix, fill_tokens
from ollama_nb.service.prompt import Prompt, fit, generate_messages
from ollama_nb.service.replies import stream_reply
from ollama_nb.service.resolve import find
from ollama_nb.service.tokens import check_ids, text_of


def run_generate(backend: Backend, request: GenerateRequest) -> AsyncGenerator[Event, None]:
    """Yield the answer to the prompt and a final Done; see ``stream_reply``."""
    prepare = partial(_prepare, backend, request)
    return stream_reply(backend, request, "generate", prepare, partial(_make_prompt, backend, request))


async def _prepare(backend: Backend, request: GenerateRequest) -> Generation | None:
    check_numbers(request)
    if not request.model:
        raise ModelNotFound("model '' not found")
    model = await find(backend, request.model)
    if request.unloads:
        await backend.pool.unload(model)
        return None
    if "image" in model.config.capabilities:
        raise Unsupported("image generation models are not currently supported")
    if request.raw and (request.template or request.system or request.context):
        raise BadRequest("raw mode does not support template, system, or context")
    if request.tokens:
        _check_alone(request)
    needs = ("insert",) if request.suffix else ()
    generation = await new_generation(backend, request, model, "generate", needs=needs, images=bool(request.images))
    if request.raw or request.infill is not None:
        return replace(generation, reply=ReplyFormat())
    if request.tokens:
        generation = replace(generation, reply=ReplyFormat())
    return generation.asking(return_tokens=True)


def _check_alone(request: GenerateRequest) -> None:
    """Raise BadRequest if token ids come with fields that change a prompt of text."""
    given = {name: getattr(request, name) for name in ("prompt", "suffix", "system", "template", "context", "images")}
    if others := [name for name, value in given.items() if value]:
        raise BadRequest(f"tokens is the whole prompt and cannot be combined with {', '.join(others)}")


async def _make_prompt(backend: Backend, request: GenerateRequest, generation: Generation, lease: Lease) -> Prompt:
    """The rendered prompt; as sent if it is raw or there is no template. The text of a context comes before it."""
    if request.tokens:
        check_ids(lease.runner, request.tokens, request.model)
        shown = await lease.runner.detokenize(request.tokens) if request.render_only else ""
        return Prompt(shown, len(request.tokens), ids=request.tokens)
    if request.infill is not None:
        filled = await fill_tokens(request.infill, lease, generation.options.num_predict)
        if filled is not None:
            return filled
        has = caps.capabilities(generation.model, generation.gguf, backend.settings.go_template)
        caps.check(generation.model, request.model, has, "generate", ("insert",))
        request = as_suffix(request, request.infill)
    if request.raw:
        return Prompt(request.prompt)
    job = _job(request, generation, lease)
    if job is None:
        prompt = Prompt(request.prompt)
    elif job.suffix or not request.truncate:
        prompt = Prompt((await backend.renderer.render(job))[0])
    else:
        prompt = await fit(backend, lease, job, lease.num_ctx - 1)
    if request.context:
        before = await text_of(lease.runner, request.context, request.model)
        # A continuation has no second BOS. Where the tokenizer adds none, the same text may begin every turn.
        text = prompt.text.removeprefix(lease.loaded.bos if lease.loaded.add_bos else "")
        prompt = replace(prompt, text=before + text, tokens=None)
    return prompt


def _job(request: GenerateRequest, generation: Generation, lease: Lease) -> PromptJob | None:
    """The job that renders the prompt; None where neither request nor model has a template.

    A suffix and the request's own template always use a Go template.
    """
    if request.suffix:
        template = request.template or generation.model.template or ""
        job = replace(generation.prompt_job((), lease.loaded), kind=GO, template=template, renderer="")
        return replace(job, prompt=request.prompt, suffix=request.suffix)
    job = generation.prompt_job(generate_messages(generation.model, request), lease.loaded)
    if request.template:
        return replace(job, kind=GO, template=request.template, renderer="")
    return job if job.template else None
