"""POST /api/embed, its predecessor /api/embeddings, and /api/rerank.

A model with rank pooling reads a query and a document together and gives their score; with any other model the score is
the cosine of their embeddings. The reply names the method, because the two have different scales.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from ollama_nb.api.events import Embeddings, Ranking, Stats
from ollama_nb.api.models import Model
from ollama_nb.api.requests import EmbedRequest, ModelRequest, RerankRequest
from ollama_nb.errors import BadRequest, ContextOverflow, ModelNotFound, from_code
from ollama_nb.runner import wire
from ollama_nb.runner.pool import Lease
from ollama_nb.service.backend import Backend
from ollama_nb.service.generation import options_in_force
from ollama_nb.service.requests import CLIENT, LiveRequest, acquire
from ollama_nb.service.resolve import find, weights_header

COSINE, RANK = "cosine", "rank"
NAMED = 10  # indices of truncated texts in a warning
PIECE = 2048  # characters or token ids that a background request embeds at once

Matrix = npt.NDArray[np.float32]


async def embed(backend: Backend, request: EmbedRequest) -> Embeddings:
    """Return one unit vector per input, in order. Without inputs, only load the model.

    Raises ModelNotFound, and ContextOverflow for an input that is too long and must not be truncated.
    """
    if not request.model:
        raise ModelNotFound("model '' not found")
    return await _embed(backend, request)


async def embeddings(backend: Backend, request: EmbedRequest) -> Embeddings:
    """Return the same as ``embed``; a missing model name is BadRequest and every failed run has status 500."""
    if not request.model:
        raise BadRequest("model is required")
    return await _embed(backend, request, failed_status=500)


async def _embed(backend: Backend, request: EmbedRequest, *, failed_status: int | None = None) -> Embeddings:
    with backend.requests.enter(request.request_id, request.model, "embed", request.background) as live:
        try:
            model = await find(backend, request.model)
        except ModelNotFound:
            raise ModelNotFound(f'model "{request.model}" not found, try pulling it first') from None
        async with await acquire_for(backend, request, model, live) as lease:
            if request.inputs is None:
                return Embeddings(())
            load_seconds = live.seconds
            try:
                with live.interruptible():
                    replies = [reply async for reply in _computed(backend, lease, request, request.inputs)]
            except BadRequest as error:
                raise from_code(error.code, error.message, failed_status or error.status) from error
            vectors = Vectors([_rows(reply, request.dimensions) for reply in replies])
            stats = Stats(
                prompt_tokens=sum(reply.prompt_tokens for reply in replies),
                prompt_seconds=sum(reply.prompt_seconds for reply in replies),
                load_seconds=load_seconds,
                total_seconds=live.seconds,
            )
            truncated = _truncated(replies)
            return Embeddings(
                vectors,
                stats,
                truncated,
                _truncation_warnings("input", truncated, replies[0], request) if truncated else (),
            )


def _truncated(replies: Sequence[wire.Embedded]) -> tuple[int, ...]:
    """The indices of the truncated inputs over all replies."""
    found: list[int] = []
    first = 0
    for reply in replies:
        found += [first + at for at in reply.truncated]
        first += len(reply.vectors) // (4 * reply.dimensions)
    return tuple(found)


async def _computed(
    backend: Backend, lease: Lease, request: EmbedRequest, inputs: Sequence[wire.EmbedInput]
) -> AsyncIterator[wire.Embedded]:
    """The vectors of all inputs. A background request lets the others go first, and does a piece at a time."""
    for piece in pieces(inputs) if request.background else [inputs]:
        if request.background:
            await backend.requests.wait_for_others()
        yield await lease.runner.embed(
            piece,
            truncate=request.truncate is not False,
            num_ctx=lease.num_ctx,
            adapters=lease.adapters,
            client=CLIENT.get(),
            background=request.background,
        )


def pieces(inputs: Sequence[wire.EmbedInput]) -> Iterator[Sequence[wire.EmbedInput]]:
    """Split inputs into pieces of one input, or of several with at most PIECE characters or token ids together."""
    start = size = 0
    for at, item in enumerate(inputs):
        size += len(item)
        if size > PIECE and at > start:
            yield inputs[start:at]
            start, size = at, len(item)
    if start < len(inputs):
        yield inputs[start:]


class Vectors(Sequence[tuple[float, ...]]):
    """The rows of matrices as doubles. Each is converted when it is read.

    Millions of numbers as Python objects would use a gigabyte, and other threads would wait while they are freed.
    """

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self._rows = [row for matrix in matrices for row in matrix]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> tuple[float, ...]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[float, ...]]: ...
    def __getitem__(self, at: int | slice) -> tuple[float, ...] | list[tuple[float, ...]]:
        return [shortest(row) for row in self._rows[at]] if isinstance(at, slice) else shortest(self._rows[at])


def _rows(reply: wire.Embedded, dimensions: int) -> Matrix:
    return cut(np.frombuffer(reply.vectors, dtype="<f4").reshape(-1, reply.dimensions), dimensions)


def cut(rows: Matrix, dimensions: int) -> Matrix:
    """The first ``dimensions`` numbers of each row, scaled to length 1 again; 0 leaves the rows unchanged."""
    if not 0 < dimensions < rows.shape[1]:
        return rows
    short = rows[:, :dimensions].astype(np.float64)
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    lengths[lengths == 0] = 1.0
    scaled: Matrix = (short / lengths).astype(np.float32)
    return scaled


def shortest(row: Matrix) -> tuple[float, ...]:
    """The doubles that print with the fewest digits for each float32, as in Go: 0.1, not 0.10000000149011612."""
    return tuple(map(float, row.astype("U32")))


async def rerank(backend: Backend, request: RerankRequest) -> Ranking:
    """Return the ``top_n`` best documents, best first. Raises ModelNotFound and BadRequest."""
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
                scores, tokens, truncated, warnings = await (_ranked if method == RANK else _cosines)(lease, request)
    best = sorted(enumerate(scores), key=lambda entry: -entry[1])[: request.top_n]
    return Ranking(tuple(best), method, tokens, warnings, truncated)


_Scores = tuple[list[float], int, tuple[int, ...], tuple[str, ...]]
"""Scores, tokens, the indices of truncated documents, and warnings."""


async def _ranked(lease: Lease, request: RerankRequest) -> _Scores:
    reply = await lease.runner.rank(
        request.query, request.documents, num_ctx=lease.num_ctx, adapters=lease.adapters, client=CLIENT.get()
    )
    warnings = _truncation_warnings("document", reply.truncated, reply, request)
    return list(reply.scores), reply.prompt_tokens, tuple(reply.truncated), warnings


async def _cosines(lease: Lease, request: RerankRequest) -> _Scores:
    texts = (request.query, *request.documents)
    reply = await lease.runner.embed(
        texts,
        truncate=request.truncate is not False,
        num_ctx=lease.num_ctx,
        adapters=lease.adapters,
        client=CLIENT.get(),
    )
    rows = np.frombuffer(reply.vectors, dtype="<f4").reshape(-1, reply.dimensions).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    lengths[lengths == 0] = 1.0
    rows /= lengths[:, None]
    cosines = np.clip(rows[1:] @ rows[0], -1.0, 1.0)  # rounding can exceed the range
    warnings = _truncation_warnings("text (0 is the query)", reply.truncated, reply, request)
    truncated = tuple(at - 1 for at in reply.truncated if at)
    return cosines.tolist(), reply.prompt_tokens, truncated, warnings


def _truncation_warnings(
    what: str, truncated: Sequence[int], reply: wire.Embedded | wire.Ranked, request: EmbedRequest | RerankRequest
) -> tuple[str, ...]:
    """The warning about texts that were too long; num_ctx is named only where it helps.

    Raises ContextOverflow for a request that must not be truncated, or that is strict and does not ask for it.
    """
    if not truncated:
        return ()
    named = ", ".join(map(str, truncated[:NAMED])) + (f" and {len(truncated) - NAMED} more" * (len(truncated) > NAMED))
    advice = "the model reads no more, so split longer texts"
    if reply.limit < reply.model_limit:
        advice = f"set the option num_ctx, up to {reply.model_limit}, or split longer texts"
    warning = f"{what} {named}: only the first {reply.limit} tokens were used; {advice}"
    if request.truncate is False or (request.strict and not request.truncate):
        raise ContextOverflow(warning)
    return (warning,)


async def acquire_for(backend: Backend, request: ModelRequest, model: Model, live: LiveRequest) -> Lease:
    """Lease the model with the options of the request. Raises BadRequest for invalid options too."""
    gguf = await weights_header(backend, model, request.model)
    options, _ = options_in_force(model, request.options, request.ignored, strict=request.strict)
    return await acquire(backend.pool, live, model, gguf, options, request.keep_alive)
