"""The routes below ``/v1`` in OpenAI's format."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ollama_nb.api.events import Ranking
from ollama_nb.server.dialects.encoder import JSON
from ollama_nb.server.dialects.native.routes import from_headers, rerank
from ollama_nb.server.dialects.openai import answers, batches, replies, requests
from ollama_nb.server.dialects.openai.answers import CHAT, COMPLETIONS, EMBEDDINGS, MAX_RUNNING, STRUCTS
from ollama_nb.server.dialects.openai.replies import ERRORS
from ollama_nb.server.handler import OllamaHandler, Route
from ollama_nb.server.keys import INFER, READ
from ollama_nb.server.limits import MAX_IMAGES
from ollama_nb.server.relay import to_neighbour

TIMINGS = "X-Timings"  # header by which a client asks for llama-server's figures


async def chat_completions(call: OllamaHandler) -> None:
    body, _ = await call.read(STRUCTS[CHAT], requests.read_chat)
    found = answers.answer_chat(call.service, body.asking(**_from_headers(call)), timed=call.is_set(TIMINGS))
    await call.send_events(found.events, found.encoder, stream=found.stream)


async def completions(call: OllamaHandler) -> None:
    body, _ = await call.read(STRUCTS[COMPLETIONS], requests.read_completion)
    body = body.asking(**_from_headers(call))
    found = await answers.answer_completion(call.service, body, timed=call.is_set(TIMINGS))
    await call.send_events(found.events, found.encoder, stream=found.stream)


async def embeddings(call: OllamaHandler) -> None:
    body, _ = await call.read(STRUCTS[EMBEDDINGS], requests.read_embeddings)
    request = body.asking(**from_headers(call)).request
    result = await call.service.embed(request)
    write = replies.embeddings
    pieces = await call.state.in_worker(write, request.model, result, request.ignored, as_base64=body.base64)
    await call.send_pieces(pieces, JSON)


async def score(call: OllamaHandler) -> None:
    bodies, _ = await call.read("openai.ScoreRequest", requests.read_score)
    rankings: list[Ranking] = [Ranking((), "", 0)] * len(bodies)
    places = iter(range(len(bodies)))

    async def rank() -> None:
        for at in places:
            rankings[at] = await call.service.rerank(replace(bodies[at], **from_headers(call)))

    tasks = [asyncio.ensure_future(rank()) for _ in range(min(MAX_RUNNING, len(bodies)))]
    try:
        await asyncio.gather(*tasks)
    finally:  # one that failed ends the others
        for task in tasks:
            task.cancel()
    reply = await call.state.in_worker(replies.scores, bodies[0].model, rankings, bodies[0].ignored)
    await call.send(reply, JSON)


async def models(call: OllamaHandler) -> None:
    found = [entry.model for entry in await call.service.list()]
    await call.send(await call.state.in_worker(replies.models, found), JSON)


async def model(call: OllamaHandler) -> None:
    name = call.path_args[0]
    await call.send(replies.model(await call.service.model(name), name), JSON)


def _from_headers(call: OllamaHandler) -> dict[str, Any]:
    return {**from_headers(call), "run_record": call.wants("Run-Record")}


ROUTES: dict[str, Mapping[str, Route]] = {
    CHAT: {"POST": Route(chat_completions, INFER, MAX_IMAGES, relay=to_neighbour("chat"), errors=ERRORS, zstd=True)},
    COMPLETIONS: {"POST": Route(completions, INFER, relay=to_neighbour("generate"), errors=ERRORS, zstd=True)},
    EMBEDDINGS: {"POST": Route(embeddings, INFER, relay=to_neighbour("embed"), errors=ERRORS, zstd=True)},
    "/v1/models": {"GET": Route(models, READ, errors=ERRORS)},
    "/v1/models/([^/].*)": {"GET": Route(model, READ, errors=ERRORS)},
    "/v1/rerank": {"POST": Route(rerank, INFER, relay=to_neighbour("rerank"), errors=ERRORS)},
    "/v1/score": {"POST": Route(score, INFER, relay=to_neighbour("rerank"), errors=ERRORS)},
    **batches.ROUTES,
}
"""Path pattern below the prefix → HTTP method → route."""
