"""POST /api/rerank: documents in the order in which they answer a query.

A model with rank pooling reads query and document together and gives the score; any other one gives the cosine of
their embeddings. The reply says which, for the two have different scales.
"""

from __future__ import annotations

import numpy as np

from ollama_nb.api.chat import RerankRequest
from ollama_nb.api.events import Ranking
from ollama_nb.errors import BadRequest
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend
from ollama_nb.service.load import acquire_for
from ollama_nb.service.resolve import find

COSINE, RANK = "cosine", "rank"


async def rerank(backend: Backend, request: RerankRequest) -> Ranking:
    """The best ``top_n`` documents, best first. Raises ModelNotFound, BadRequest."""
    if not request.model:
        raise BadRequest("model is required")
    if not request.query:
        raise BadRequest("query is required")
    if not request.documents:
        raise BadRequest("documents: give at least one")
    if request.top_n is not None and request.top_n < 1:
        raise BadRequest("top_n must be at least 1")
    with backend.requests.enter(request.request_id, request.model, "embed") as live:
        model = await find(backend, request.model)
        async with await acquire_for(backend, request, model, live) as lease:
            method = RANK if lease.loaded.pooling == RANK else COSINE
            with live.interruptible():
                scores, tokens = await (_ranked if method == RANK else _cosines)(lease, request)
    best = sorted(enumerate(scores), key=lambda entry: -entry[1])[: request.top_n]
    return Ranking(tuple(best), method, tokens)


async def _ranked(lease: Lease, request: RerankRequest) -> tuple[list[float], int]:
    reply = await lease.runner.rank(request.query, request.documents, num_ctx=lease.num_ctx, adapters=lease.adapters)
    return list(reply.scores), reply.prompt_tokens


async def _cosines(lease: Lease, request: RerankRequest) -> tuple[list[float], int]:
    texts = (request.query, *request.documents)
    reply = await lease.runner.embed(texts, num_ctx=lease.num_ctx, adapters=lease.adapters)
    rows = np.frombuffer(reply.vectors, dtype="<f4").reshape(-1, reply.dimensions).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    lengths[lengths == 0] = 1.0
    rows /= lengths[:, None]
    cosines = np.clip(rows[1:] @ rows[0], -1.0, 1.0)  # rounding may leave the range
    return cosines.tolist(), reply.prompt_tokens
