"""The routes below ``/v1`` in OpenAI's format."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ollama_nb.api.events import Ranking
from ollama_nb.server.dialects.encoder import JSON
from ollama_nb.server.dialects.native.routes import MAX_IMAGES, from_headers, rerank
from ollama_nb.server.dialects.openai import answers, batches, replies, requests
from ollama_nb.server.dialects.openai.answers import CHAT, COMPLETIONS, EMBEDDINGS, MAX_RUNNING, STRUCTS
from ollama_nb.server.dialects.openai.replies import ERRORS
from ollama_nb.server.handler import OllamaHandler, Route
from ollama_nb.server.keys import INFER, READ
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
    await call.send(await answers.answer_embeddings(call.service, body.asking(**from_headers(call))), JSON)


async def score(call: OllamaHandler) -> None:
    bodies, _ = await call.read("openai.ScoreRequest", requests.read_score)
    places = asyncio.Semaphore(MAX_RUNNING)

    async def rank(at: int) -> Ranking:
        async with places:
            return await call.service.rerank(replace(bodies[at], **from_headers(call)))

    tasks = [asyncio.ensure_future(rank(at)) for at in range(len(bodies))]
    try:
        rankings = await asyncio.gather(*tasks)
    finally:  # one that failed ends the others
        for task in tasks:
            task.cancel()
    await call.send(replies.scores(bodies[0].model, rankings, bodies[0].ignored), JSON)


async def models(call: OllamaHandler) -> None:
    await call.send(replies.models([entry.model for entry in await call.service.list()]), JSON)


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
