"""One stream's way to its client.

Rule: one flush is under way at a time; what arrives meanwhile joins the next one. Past ``MOST_PENDING`` bytes the
producer waits, and a client that does not take a piece within ``write_timeout`` is dropped.
"""

from __future__ import annotations

import asyncio

from tornado import web
from tornado.iostream import StreamClosedError

MOST_PENDING = 1 << 20
PIECE = 64 << 10


class SlowReader(Exception):
    """The client stopped reading."""


class Outlet:
    """Bytes written to a handler's response, its headers first."""

    write_timeout = 60.0

    def __init__(self, handler: web.RequestHandler) -> None:
        self._handler = handler
        self._pending = bytearray()
        self._flush: asyncio.Future[None] | None = None
        self._broken = False

    async def put(self, data: bytes) -> None:
        """Add bytes; waits only when too many wait already. Raises StreamClosedError, SlowReader."""
        self._pending += data
        self._next()
        while len(self._pending) > MOST_PENDING:
            await self._flushed()
        if self._broken:
            raise StreamClosedError

    async def close(self) -> None:
        """Wait until everything is with the client's system."""
        while self._flush is not None:
            await self._flushed()
        if self._broken:
            raise StreamClosedError

    def _next(self) -> None:
        if self._flush is not None or not self._pending:
            return
        self._handler.write(bytes(self._pending[:PIECE]))
        del self._pending[:PIECE]
        self._flush = self._handler.flush()
        self._flush.add_done_callback(self._done)

    def _done(self, flush: asyncio.Future[None]) -> None:
        self._flush = None
        if flush.cancelled() or flush.exception() is not None:
            self._broken = True
            self._pending.clear()
        self._next()

    async def _flushed(self) -> None:
        if self._flush is None:
            return
        done, _ = await asyncio.wait({self._flush}, timeout=self.write_timeout)
        if not done:
            raise SlowReader
        # The done callback, which starts the next flush, runs before this coroutine goes on: it was added first.
