"""From the body of a request to its reply: for the routes, and without HTTP for batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from statistics import fmean

from ollama_nb.api.events import Delta, Done, Event, Rendered, Stats, ToolCallDelta, ToolCalls
from ollama_nb.api.requests import GenerateRequest
from ollama_nb.errors import OllamaError
from ollama_nb.server.dialects import gojson
from ollama_nb.server.dialects.encoder import ReplyEncoder
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.openai import replies, requests
from ollama_nb.server.dialects.openai.replies import ChatCompletionReply, CompletionReply
from ollama_nb.server.dialects.openai.requests import ChatCompletion, Completion, EmbeddingsBody, ReplyForm
from ollama_nb.service.replies import merged
from ollama_nb.service.service import Service

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
STRUCTS = {CHAT: "openai.ChatCompletionRequest", COMPLETIONS: "openai.CompletionRequest",
           EMBEDDINGS: "openai.EmbedRequest"}  # fmt: skip
"""Paths of the routes that batches can use, and the names of their bodies in error messages."""

MAX_RUNNING = 8  # prompts of one request that are served at the same time

WITH_CHOICE = (Delta, ToolCallDelta, ToolCalls, Done)  # the events of one choice

Events = AsyncGenerator[Event, None]


@dataclass(frozen=True, slots=True)
class PendingReply:
    """The events of a reply, and what writes them."""

    events: Events
    encoder: ReplyEncoder
    stream: bool


def answer_chat(service: Service, body: ChatCompletion, *, timed: bool = False) -> PendingReply:
    encoder = ChatCompletionReply(body.request.model, body.form, timed=timed)
    events = _in_form(service.chat(body.request), body.form)
    return PendingReply(events, encoder, body.form.stream)


async def answer_completion(service: Service, body: Completion, *, timed: bool = False) -> PendingReply:
    """Raises BadRequest for tokens that the model does not have, if they are to be echoed."""
    echoes: list[str] = []
    for request in body.requests if body.echo else ():
        text = await service.detokenize(request.model, request.tokens) if request.tokens else request.prompt
        echoes += [text] * body.n
    encoder = CompletionReply(body.requests[0].model, body.form, timed=timed, echoes=echoes)
    replies_to_prompts = [_best(service, request, body) for request in body.requests]
    events = replies_to_prompts[0] if len(replies_to_prompts) == 1 else _merged(replies_to_prompts, body.n)
    return PendingReply(_in_form(events, body.form), encoder, body.form.stream)


async def answer_embeddings(service: Service, body: EmbeddingsBody) -> bytes:
    request = body.request
    result = await service.embed(request)
    write = replies.embeddings
    return b"".join(await asyncio.to_thread(write, request.model, result, request.ignored, as_base64=body.base64))


async def answer(service: Service, url: str, body: bytes, request_id: str) -> bytes:
    """Serve one request to one of ``STRUCTS`` without HTTP, after those of other clients; return the reply's body.

    ``stream`` has no effect. A task that is cancelled meanwhile frees everything. Raises OllamaError.
    """
    parsed = await asyncio.to_thread(_read, url, body)
    asked = parsed.asking(request_id=request_id, background=True)
    if isinstance(asked, EmbeddingsBody):
        return await answer_embeddings(service, asked)
    found = (
        answer_chat(service, asked) if isinstance(asked, ChatCompletion) else await answer_completion(service, asked)
    )
    async with aclosing(found.events) as events:
        gathered = [event async for event in events]
    if not gathered or not isinstance(gathered[-1], Done | Rendered):
        raise OllamaError("the model's reply ended prematurely")
    return await asyncio.to_thread(found.encoder.whole, gathered)


def _read(url: str, body: bytes) -> ChatCompletion | Completion | EmbeddingsBody:
    fields = Fields(gojson.decode(body), STRUCTS[url])
    if url == EMBEDDINGS:
        return requests.read_embeddings(fields)
    return requests.read_chat(fields) if url == CHAT else requests.read_completion(fields)


async def _best(service: Service, request: GenerateRequest, body: Completion) -> Events:
    """The reply to one prompt; of more choices than are sent, those whose tokens are the most probable on average."""
    async with aclosing(service.generate(request)) as events:
        if request.n == body.n:
            async for event in events:
                yield event
            return
        found = [event async for event in events]
    last = found[-1] if found else None
    if not isinstance(last, Done):
        for event in found:
            yield event
        return
    new_index = {choice: at for at, choice in enumerate(_best_choices(found)[: body.n])}
    kept = [event for event in found if isinstance(event, Delta | Done) and event.choice in new_index]
    for event in kept:
        if isinstance(event, Delta):
            logprobs = event.logprobs if body.logprobs else ()
            yield replace(event, choice=new_index[event.choice], logprobs=logprobs)
        else:
            figures = last if event is kept[-1] else Done("")
            yield _with_figures(replace(event, choice=new_index[event.choice]), figures)


def _best_choices(events: Sequence[Event]) -> list[int]:
    """The indices of the choices, best first."""
    logprobs: dict[int, list[float]] = {}
    for event in events:
        if isinstance(event, Delta | Done):
            found = logprobs.setdefault(event.choice, [])
            found += [entry.logprob for entry in event.logprobs] if isinstance(event, Delta) else []
    return sorted(logprobs, key=lambda choice: -fmean(logprobs[choice] or [-math.inf]))


async def _merged(sources: Sequence[Events], n: int) -> Events:
    """The replies to several prompts, each with ``n`` choices, ``MAX_RUNNING`` of them at a time.

    Choice ``i`` of prompt ``p`` becomes choice ``p * n + i``. The last event has the figures of all.
    """
    places = asyncio.Semaphore(MAX_RUNNING)

    async def serve(source: Events, first: int) -> Events:
        async with places, aclosing(source) as events:
            async for event in events:
                yield _moved(event, first)

    ends: list[Done] = []  # the last one waits for the next one, because only the last one of all has figures
    async with aclosing(merged([serve(source, at * n) for at, source in enumerate(sources)])) as events:
        async for event in events:
            if not isinstance(event, Done):
                yield event
                continue
            if ends:
                yield _with_figures(ends[-1], Done(""))
            ends.append(event)
    if ends:
        yield _with_figures(ends[-1], _total(ends))


def _moved(event: Event, first: int) -> Event:
    """The event with ``first`` added to its choice."""
    return replace(event, choice=event.choice + first) if isinstance(event, WITH_CHOICE) else event


def _with_figures(done: Done, figures: Done) -> Done:
    return replace(done, stats=figures.stats, warnings=figures.warnings, run=figures.run)


def _total(ends: Sequence[Done]) -> Done:
    """The figures of several replies: their prompts and outputs count together, the times are those of the longest."""
    stats = [end.stats for end in ends if end.stats is not None]
    sums = {field.name: sum(getattr(entry, field.name) for entry in stats) for field in fields(Stats)}
    times = ("load_seconds", "total_seconds", "context_length")
    longest = {name: max((getattr(entry, name) for entry in stats), default=0) for name in times}
    warnings = tuple(dict.fromkeys(warning for end in ends for warning in end.warnings))
    run = next((end.run for end in ends if end.run), None)
    return Done("", Stats(**(sums | longest)), warnings=warnings, run=run)


async def _in_form(events: Events, form: ReplyForm) -> Events:
    """The events with thinking where the request wants it: as it is, or (also) in the content, between tags."""
    thinking: set[int] = set()  # choices whose thinking has begun and not ended
    async with aclosing(events):
        async for event in events:
            if form.reasoning in ("none", "deepseek-legacy") and isinstance(event, WITH_CHOICE):
                index = event.choice
                if isinstance(event, Delta):
                    begin = "<think>" if event.thinking and index not in thinking else ""
                    thinking |= {index} if event.thinking else set()
                    end = "</think>" if event.content and index in thinking else ""
                    thinking -= {index} if event.content else set()
                    content = begin + event.thinking + end + event.content
                    event = replace(event, content=content, thinking=event.thinking if form.reasoning != "none" else "")
                elif index in thinking:
                    thinking -= {index}
                    yield Delta("</think>", choice=index)
            yield event
