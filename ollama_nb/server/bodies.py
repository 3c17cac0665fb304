"""Where the bodies of requests go: into memory, into the store, or nowhere. No file or buffer outlives its request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ollama_nb.api.names import Digest
from ollama_nb.errors import RequestTooLarge
from ollama_nb.store.blobs import BlobWriter

MIB = 1 << 20
_WRITTEN_AT_ONCE = 4 * MIB


class Sink(Protocol):
    """Where a request's body goes."""

    async def write(self, chunk: bytes) -> None: ...
    async def close(self) -> None: ...


class Collected:
    """A body kept in memory, up to a limit."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._chunks: list[bytes] = []

    async def write(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._most:
            raise RequestTooLarge(f"request body too large: more than {self._most // MIB} MiB")
        self._chunks.append(chunk)

    def body(self) -> bytes:
        return b"".join(self._chunks)

    async def close(self) -> None:
        self._chunks.clear()


class Discarded:
    """A body that nobody needs."""

    async def write(self, chunk: bytes) -> None:
        pass

    async def close(self) -> None:
        pass


class Upload:
    """A blob on its way into the store: written in large pieces by a worker thread, so that a slow disk blocks only
    its own client. One piece of work at a time; none outlives the call that started it.
    """

    def __init__(self, writer: BlobWriter, expected: Digest) -> None:
        self._writer, self._expected = writer, expected
        self._pending = bytearray()
        self._lock = asyncio.Lock()

    async def write(self, chunk: bytes) -> None:
        self._pending += chunk
        if len(self._pending) >= _WRITTEN_AT_ONCE:
            await self._flush()

    async def commit(self) -> None:
        """Raises BadRequest when the bytes have another digest; nothing is stored then."""
        await self._flush()
        await self._in_thread(self._writer.commit, self._expected)

    async def close(self) -> None:
        """Remove what was not committed."""
        await self._in_thread(self._writer.abort)

    async def _flush(self) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        await self._in_thread(self._writer.write, data)

    async def _in_thread(self, work: Callable[..., object], *args: object) -> None:
        async with self._lock:
            thread = asyncio.ensure_future(asyncio.to_thread(work, *args))
            try:
                await asyncio.shield(thread)
            except asyncio.CancelledError:
                await asyncio.wait({thread})
                raise
