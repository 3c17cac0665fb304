"""One request to another server of this machine, over Tornado's own HTTP: its head first, then pieces as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient

CONNECT_SECONDS = 1.0
_MOST_BYTES = 1 << 42
_WAITING_PIECES = 16


class Address(Protocol):
    """Where to, and the key that lets in."""

    @property
    def url(self) -> str: ...
    @property
    def key(self) -> str: ...


class Broken(Exception):
    """Nobody answers there, or the answer ended before its end."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer."""

    status: int
    content_type: str


async def ask(
    to: Address, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> AsyncGenerator[Head | bytes, None]:
    """Yield a Head, then the body's pieces. Closing it hangs up, which cancels the request there. Raises Broken."""
    parts = urlsplit(to.url)
    sent = HTTPHeaders({"Host": parts.netloc, "Content-Length": str(len(body)), **(headers or {})})
    if to.key:
        sent["Authorization"] = f"Bearer {to.key}"
    stream = await _connected(parts.hostname or "", parts.port or 80)
    listener = _Listener()
    connection = HTTP1Connection(stream, True, HTTP1ConnectionParameters(no_keep_alive=True, max_body_size=_MOST_BYTES))
    reading: asyncio.Task[None] | None = None
    try:
        start = RequestStartLine(method, parts.path.rstrip("/") + path, "HTTP/1.1")
        sending = connection.write_headers(start, sent, body)
        connection.finish()
        reading = asyncio.ensure_future(listener.listen(connection))
        while (piece := await listener.pieces.get()) is not None:
            yield piece
        if not listener.complete:
            raise Broken
        await sending
    except StreamClosedError:
        raise Broken from None
    finally:
        stream.close()
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})


async def _connected(host: str, port: int) -> IOStream:
    try:
        return await TCPClient().connect(host, port, timeout=CONNECT_SECONDS)
    except (OSError, StreamClosedError, TimeoutError):
        raise Broken from None


class _Listener(HTTPMessageDelegate):
    """Puts what comes into a queue; when that is full, the sender waits. None: nothing more comes."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[Head | bytes | None] = asyncio.Queue(_WAITING_PIECES)
        self.complete = False

    async def headers_received(self, start_line: object, headers: HTTPHeaders) -> None:
        assert isinstance(start_line, ResponseStartLine)
        await self.pieces.put(Head(start_line.code, headers.get("Content-Type", "")))

    async def data_received(self, chunk: bytes) -> None:
        await self.pieces.put(chunk)

    def finish(self) -> None:
        self.complete = True

    async def listen(self, connection: HTTP1Connection) -> None:
        with contextlib.suppress(Exception):  # however it breaks: it is not complete then
            await connection.read_response(self)
        await self.pieces.put(None)
