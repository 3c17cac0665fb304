"""A request goes to a neighbour that has its model in memory, so that no second copy is loaded here.

Rule: the reply passes through as it is. While nothing of it has been sent on, whatever goes wrong there means that the
request is done here after all. A request that came from a neighbour is never passed on again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from ollama_nb.errors import Cancelled, ConnectError
from ollama_nb.runtime import RuntimeInfo
from ollama_nb.server.bodies import Collected
from ollama_nb.server.dialects import native_reply
from ollama_nb.server.exchange import Broken, Head, ask
from ollama_nb.server.handlers import Endpoint
from ollama_nb.service.requests import PROMPT, LiveRequest

FORWARDED = "X-Ollama-Forwarded"
_PREFIX = "X-Ollama-"
_OWN_FAULT = {401, 403, 404, 429}
"""The neighbour's own affairs, like all of 500 and above: a stale key, a model that it has no more, too much to do."""

Pieces = AsyncGenerator[Head | bytes, None]


async def passed_on(call: Endpoint, model: str, kind: str) -> bool:
    """Whether a neighbour has answered; if not, nothing has been sent."""
    if call.state.neighbours is None or FORWARDED in call.request.headers or not model:
        return False
    neighbour = await call.state.neighbours.with_model(call.service, model)
    if neighbour is None:
        return False
    headers = {name: value for name, value in call.request.headers.get_all() if name.startswith(_PREFIX)}
    headers |= {"Content-Type": native_reply.JSON, "X-Request-Id": call.id, FORWARDED: "1"}
    body = cast(Collected, call.sink).body()
    with call.service.requests.enter(call.id, model, kind) as live:
        live.state = PROMPT
        watching = asyncio.ensure_future(_watch(live, neighbour, call.id))
        try:
            async with aclosing(ask(neighbour, "POST", call.route, body, headers)) as pieces:
                return await _send(call, pieces, live, neighbour)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


async def _send(call: Endpoint, pieces: Pieces, live: LiveRequest, neighbour: RuntimeInfo) -> bool:
    try:
        head = await anext(pieces)
        assert isinstance(head, Head)
        if head.status in _OWN_FAULT or head.status >= 500:
            return False
        if head.content_type.startswith(native_reply.NDJSON):
            return await _stream(call, pieces, live, neighbour)
        body = b"".join([piece async for piece in pieces if isinstance(piece, bytes)])
    except Broken:
        return False
    await call.send(body, head.content_type, head.status)
    return True


async def _stream(call: Endpoint, pieces: Pieces, live: LiveRequest, neighbour: RuntimeInfo) -> bool:
    """Line by line, so that an error of ours is a line of its own as well."""
    rest, sent = b"", False
    try:
        async for piece in pieces:
            *lines, rest = (rest + cast(bytes, piece)).split(b"\n")
            for line in lines:
                live.token()
                await call.send_line(line)
                sent = True
    except Broken:
        if not sent:
            raise
        raise ConnectError(
            f"the server at {neighbour.url}, which has the model loaded, closed the connection: repeat the request"
        ) from None
    await call.end()
    return True


async def _watch(live: LiveRequest, neighbour: RuntimeInfo, request_id: str) -> None:
    """Whoever cancels the request here cancels it there; its stream then ends as cancelled ones do."""
    try:
        with live.interruptible():
            await asyncio.Event().wait()
    except Cancelled:
        with contextlib.suppress(Broken):
            async with aclosing(ask(neighbour, "DELETE", f"/api/requests/{request_id}")) as reply:
                async for _ in reply:
                    pass
