"""POST /api/chat: a conversation goes in, a reply comes out in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial

from ollama_nb.api.events import Event
from ollama_nb.api.requests import JINJA, ChatRequest, PromptJob
from ollama_nb.errors import BadRequest, ContextOverflow
from ollama_nb.runner import wire
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend
from ollama_nb.service.calls import offered_tools, with_forced_call, with_tools_described
from ollama_nb.service.capabilities import capabilities
from ollama_nb.service.generation import Generation, check_numbers, new_generation
from ollama_nb.service.prompt import IMAGE_TOKENS, Prompt, chat_messages, fit, omitted_roles
from ollama_nb.service.replies import stream_reply
from ollama_nb.service.resolve import find
from ollama_nb.template import chatml


def run_chat(backend: Backend, request: ChatRequest) -> AsyncGenerator[Event, None]:
    """Yield the reply to the last message and a final Done; see ``stream_reply``."""
    prepare = partial(_prepare, backend, request)
    return stream_reply(backend, request, "chat", prepare, partial(_prompt_with_warnings, backend, request))


async def _prepare(backend: Backend, request: ChatRequest) -> Generation | None:
    check_numbers(request)
    if not request.model:
        raise BadRequest("model is required")
    model = await find(backend, request.model)
    if request.unloads:
        await backend.pool.unload(model)
        return None
    images = any(message.images for message in request.messages)
    tools = offered_tools(request)
    forced = request.tool_choice.mode == "required" and not request.is_empty
    needs = ("tools",) if tools and not forced else ()
    generation = await new_generation(backend, request, model, "chat", needs=needs, images=images)
    last = request.messages[-1] if request.messages else None
    one_call = not request.parallel_tool_calls
    reply = replace(generation.reply, tools=tools, last=last, one_call=one_call, detailed=request.detailed)
    generation = replace(generation, reply=reply)
    if forced:
        renders_tools = "tools" in capabilities(model, generation.gguf, backend.settings.go_template)
        generation = await with_forced_call(backend, generation, renders_tools=renders_tools, parallel=not one_call)
    if not generation.chat_format.template and not generation.options.stop:
        # The renderer uses ChatML where the model has no template: stop at the end of its turns.
        generation = generation.asking(options=replace(generation.options, stop=chatml.STOPS))
    if generation.chat_format.kind == JINJA:
        # As in Ollama, a chat that Jinja renders is refused when its last message is too long: cutting tokens out of
        # the middle of the prompt would break the format.
        generation = generation.asking(truncate=False)
    return generation


async def _prompt_with_warnings(backend: Backend, request: ChatRequest, generation: Generation, lease: Lease) -> Prompt:
    """The prompt, with a warning for each message that the template leaves out. Raises BadRequest if strict."""
    prompt = await _fitted_prompt(backend, request, generation, lease)
    warnings = () if prompt.messages_dropped else omitted_roles(request.messages, prompt.text)
    if warnings and request.strict:
        raise BadRequest("; ".join(warnings))
    return replace(prompt, warnings=warnings)


async def _fitted_prompt(backend: Backend, request: ChatRequest, generation: Generation, lease: Lease) -> Prompt:
    """Render the conversation; drop old messages until it fits, if the request allows that.

    Raises ContextOverflow when only whole messages may be dropped and the last one alone does not fit.
    """
    job = chat_job(replace(request, tools=generation.reply.tools), generation, lease.loaded)
    if not request.truncate:
        return Prompt((await backend.renderer.render(job))[0])
    image_tokens = IMAGE_TOKENS if generation.model.projectors else 0
    limit = lease.num_ctx - 1
    prompt = await fit(backend, lease, job, limit, image_tokens=image_tokens)
    if request.truncate == "messages" and (prompt.tokens or 0) > limit:
        raise ContextOverflow(
            f"the last message and the system prompt have {prompt.tokens} tokens, but only {limit} fit into the "
            "context; shorten them or increase num_ctx"
        )
    return prompt


def chat_job(request: ChatRequest, generation: Generation, loaded: wire.EngineFacts) -> PromptJob:
    """The job that renders the whole conversation."""
    parser = generation.chat_format.parser
    tools = parser.offered(request.tools) if parser is not None else request.tools
    messages = chat_messages(generation.model, request.messages)
    if generation.reply.describes_tools:
        messages, tools = with_tools_described(messages, tools), ()
    return replace(generation.prompt_job(messages, loaded), tools=tools)
