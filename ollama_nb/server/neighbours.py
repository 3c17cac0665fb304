"""Other servers of the same user on this machine: which of them has a model loaded, and requests to them.

Each connection begins with a challenge (:mod:`ollama_nb.runtime`), so that neither key nor prompt reaches a program
that listens on the port of a server that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError
from tornado.tcpclient import TCPClient

from ollama_nb import runtime
from ollama_nb.errors import OllamaError
from ollama_nb.runtime import RuntimeInfo, running_servers
from ollama_nb.service.service import Service

ASK_SECONDS = 1.0  # for a neighbour to list its loaded models
CONNECT_SECONDS = 1.0
PROOF_SECONDS = 5.0  # for a neighbour to prove that it knows its key, even while it is busy
_MAX_PROOF = 1 << 14  # bytes of that reply
_MAX_BODY = 1 << 42  # bytes of a response: streams have no limit
_MAX_PIECES = 16  # pieces of a body that wait to be sent on


class ConnectionBroken(Exception):
    """The neighbour does not answer or prove that it knows its key, or its response ended prematurely."""


class Neighbours:
    """Finds servers by their runtime files, in the state folder ``home`` and in Jupyter's runtime folder."""

    def __init__(self, home: Path, jupyter: Path) -> None:
        self._home, self._jupyter = home, jupyter

    async def with_model(self, service: Service, model: str) -> RuntimeInfo | None:
        """A server that has loaded the model that ``model`` names here; None if this server has loaded it itself."""
        others = await asyncio.to_thread(running_servers, self._home, self._jupyter)
        if not others:
            return None
        try:
            digest = await service.digest(model)
        except OllamaError:
            return None
        if any(running.model.digest == digest for running in service.running()):
            return None
        replies = await asyncio.gather(*(_has_loaded(other, model, digest) for other in others))
        return next((other for other, has in zip(others, replies, strict=True) if has), None)


async def _has_loaded(other: RuntimeInfo, model: str, digest: str) -> bool:
    """Whether a server has loaded the model of that digest under the same name."""
    try:
        async with asyncio.timeout(ASK_SECONDS), aclosing(ask(other, "GET", "/api/ps")) as reply:
            body = b"".join([piece async for piece in reply if not isinstance(piece, ResponseHead)])
        return any(_is_named(entry, model) for entry in json.loads(body)["models"] if entry["digest"] == digest)
    except (ConnectionBroken, TimeoutError, ValueError, KeyError, TypeError):
        return False


def _is_named(entry: dict[str, Any], model: str) -> bool:
    """Whether an entry of ``/api/ps`` has the name ``model``; the tag defaults to ``latest``."""
    name = model.partition("@")[0].removesuffix(":local").lower()
    return str(entry["name"]).lower() in (name, f"{name}:latest")


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and content type of a neighbour's response."""

    status: int
    content_type: str


async def ask(
    to: RuntimeInfo, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> AsyncGenerator[ResponseHead | bytes, None]:
    """Send a request; yield the response's head, then the pieces of its body. Raises ConnectionBroken.

    Closing the generator closes the connection, which cancels the request in the other server.
    """
    parts = urlsplit(to.url)
    sent = HTTPHeaders({"Host": parts.netloc, "Content-Length": str(len(body)), **(headers or {})})
    if to.key:
        sent["Authorization"] = f"Bearer {to.key}"
    stream = await _connected(to)
    listener = _Listener()
    connection = HTTP1Connection(stream, True, HTTP1ConnectionParameters(no_keep_alive=True, max_body_size=_MAX_BODY))
    reading: asyncio.Task[None] | None = None
    try:
        start = RequestStartLine(method, parts.path.rstrip("/") + path, "HTTP/1.1")
        sending = connection.write_headers(start, sent, body)
        connection.finish()
        reading = asyncio.ensure_future(listener.listen(connection))
        while (piece := await listener.pieces.get()) is not None:
            yield piece
        if not listener.complete:
            raise ConnectionBroken
        await sending
    except StreamClosedError:
        raise ConnectionBroken from None
    finally:
        stream.close()
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})


async def _connected(to: RuntimeInfo) -> IOStream:
    """A connection to the server that wrote the runtime file, and to no other program on its port."""
    parts = urlsplit(to.url)
    try:
        stream = await TCPClient().connect(parts.hostname or "", parts.port or 80, timeout=CONNECT_SECONDS)
    except (OSError, StreamClosedError, TimeoutError):
        raise ConnectionBroken from None
    try:
        async with asyncio.timeout(PROOF_SECONDS):
            proven = await _proves(stream, to)
    except (StreamClosedError, UnsatisfiableReadError, HTTPInputError, TimeoutError):
        proven = False
    except BaseException:
        stream.close()
        raise
    if not proven:
        stream.close()
        raise ConnectionBroken
    return stream


async def _proves(stream: IOStream, to: RuntimeInfo) -> bool:
    parts, challenge = urlsplit(to.url), runtime.new_challenge()
    head = (
        f"HEAD {parts.path.rstrip('/')}/ HTTP/1.1\r\nHost: {parts.netloc}\r\n{runtime.CHALLENGE}: {challenge}\r\n\r\n"
    )
    await stream.write(head.encode("latin-1", "replace"))
    reply = await stream.read_until(b"\r\n\r\n", max_bytes=_MAX_PROOF)
    headers = HTTPHeaders.parse(reply.decode("latin-1").partition("\r\n")[2])
    return runtime.is_proof(headers.get(runtime.PROOF, ""), to.key, challenge)


class _Listener(HTTPMessageDelegate):
    """Puts the head and the body's pieces into a bounded queue, and None at the end."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[ResponseHead | bytes | None] = asyncio.Queue(_MAX_PIECES)
        self.complete = False

    async def headers_received(self, start_line: object, headers: HTTPHeaders) -> None:
        assert isinstance(start_line, ResponseStartLine)
        await self.pieces.put(ResponseHead(start_line.code, headers.get("Content-Type", "")))

    async def data_received(self, chunk: bytes) -> None:
        await self.pieces.put(chunk)

    def finish(self) -> None:
        self.complete = True

    async def listen(self, connection: HTTP1Connection) -> None:
        with contextlib.suppress(Exception):  # whatever the failure: ``complete`` stays False
            await connection.read_response(self)
        await self.pieces.put(None)
