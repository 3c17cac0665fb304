"""Relays a request to a neighbour that has its model loaded, so that no second copy is loaded here.

The reply is passed on unchanged. If the neighbour fails before the first byte of the reply has been sent on, this
server handles the request itself. A request that came from a neighbour is not relayed again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import cast

from ollama_nb.errors import BadRequest, Cancelled, RelayBroken
from ollama_nb.runtime import RuntimeInfo
from ollama_nb.server.dialects.encoder import SSE
from ollama_nb.server.dialects.native import replies, requests
from ollama_nb.server.handler import OllamaHandler
from ollama_nb.server.neighbours import ConnectionBroken, ResponseHead, ask
from ollama_nb.service.requests import PROMPT, LiveRequest

FORWARDED = "X-Ollama-Forwarded"  # marks a request that came from a neighbour
_PASSED_ON = ("X-Ollama-", "X-Timings", "Anthropic-")  # beginnings of headers that change the reply
_RETRY_HERE = {401, 403, 404, 429}  # like all from 500: stale key, model removed there, too many requests there

Pieces = AsyncGenerator[ResponseHead | bytes, None]


def to_neighbour(kind: str) -> Callable[[OllamaHandler], Awaitable[bool]]:
    """For the ``relay`` of a route; ``kind`` is the kind of request that the queue shows."""

    async def relay(call: OllamaHandler) -> bool:
        neighbour, model = await _neighbour_for(call)
        return neighbour is not None and await _relay(call, neighbour, model, kind)

    return relay


async def _neighbour_for(call: OllamaHandler) -> tuple[RuntimeInfo | None, str]:
    """The neighbour that should answer, and the model that the request names."""
    if call.state.neighbours is None or FORWARDED in call.request.headers:
        return None, ""
    try:
        model, unloads = requests.model_and_unload(await call.fields(""))
    except BadRequest:
        return None, ""  # the route itself reports what is wrong
    if not model or unloads:
        return None, model
    return await call.state.neighbours.with_model(call.service, model), model


async def _relay(call: OllamaHandler, neighbour: RuntimeInfo, model: str, kind: str) -> bool:
    headers = {name: value for name, value in call.request.headers.get_all() if name.startswith(_PASSED_ON)}
    headers |= {"Content-Type": replies.JSON, "X-Request-Id": call.id, FORWARDED: "1"}
    with call.service.requests.enter(call.id, model, kind) as live:
        live.state = PROMPT
        watching = asyncio.ensure_future(_relay_cancellation(live, neighbour, call.id))
        try:
            body = await call.read_body()
            async with aclosing(ask(neighbour, "POST", call.path, body, headers)) as pieces:
                return await _send(call, pieces, live, neighbour)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


async def _send(call: OllamaHandler, pieces: Pieces, live: LiveRequest, neighbour: RuntimeInfo) -> bool:
    try:
        head = await anext(pieces)
        assert isinstance(head, ResponseHead)
        if head.status in _RETRY_HERE or head.status >= 500:
            return False
        if head.content_type.startswith((replies.NDJSON, SSE)):
            return await _stream(call, head, pieces, live, neighbour)
        body = b"".join([piece async for piece in pieces if isinstance(piece, bytes)])
    except ConnectionBroken:
        return False
    await call.send(body, head.content_type, head.status)
    return True


async def _stream(
    call: OllamaHandler, head: ResponseHead, pieces: Pieces, live: LiveRequest, neighbour: RuntimeInfo
) -> bool:
    """Send whole lines or server-sent events, so that an error can follow as one of its own."""
    separator = b"\n\n" if head.content_type.startswith(SSE) else b"\n"
    rest, sent = b"", False
    try:
        async for piece in pieces:
            *parts, rest = (rest + cast(bytes, piece)).split(separator)
            for part in parts:
                live.count_output()
                call.start_stream(head.content_type, lambda error: call.errors.in_stream(error, call.id))
                await call.send_piece(part + separator)
                sent = True
    except ConnectionBroken:
        if not sent:
            raise
        raise RelayBroken(
            f"the server at {neighbour.url}, which has the model loaded, closed the connection: repeat the request"
        ) from None
    await call.end()
    return True


async def _relay_cancellation(live: LiveRequest, neighbour: RuntimeInfo, request_id: str) -> None:
    """Cancel the neighbour's request when this one is cancelled; the neighbour then ends the stream as usual."""
    try:
        with live.interruptible():
            await asyncio.Event().wait()
    except Cancelled:
        with contextlib.suppress(ConnectionBroken):
            async with aclosing(ask(neighbour, "DELETE", f"/api/requests/{request_id}")) as reply:
                async for _ in reply:
                    pass
