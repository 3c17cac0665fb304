"""Request bodies on their way in, and streamed replies on their way out, both with bounded memory.

In: a handler gives each chunk of a request's body to a :class:`BodySink`, which keeps it in memory, writes it into the
store or discards it. Out: a :class:`ReplyWriter` flushes one piece at a time; what is written meanwhile joins the next
piece. A producer waits while more than ``MAX_PENDING`` bytes are queued, and a client that does not accept a piece
within ``write_timeout`` seconds is dropped. A :class:`MemoryBudget` limits all bodies in memory together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from tornado import web
from tornado.iostream import StreamClosedError

from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, Busy, RequestTooLarge
from ollama_nb.server.limits import MAX_PENDING, MIB, WRITE_SECONDS
from ollama_nb.service.requests import finish_in_thread
from ollama_nb.store.blobs import BlobWriter

PIECE = 64 << 10  # bytes of a reply in one flush
_ZSTD_WINDOW = 8 * MIB  # bytes of memory that decompressing a body may need
_BLOB_PIECE = 4 * MIB  # bytes of an upload in one write to the disk


class BodySink(Protocol):
    """Where the body of a request goes. ``close`` releases everything, however the request ends."""

    async def write(self, chunk: bytes) -> None: ...
    async def close(self) -> None: ...


class MemoryBudget:
    """Counts the bytes of bodies in memory: at most ``max_bytes`` together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.used = max_bytes, 0

    def take(self, size: int) -> None:
        """Count more bytes. Raises Busy if there would be too many."""
        if self.used + size > self._max_bytes:
            raise Busy("the bodies of other requests use all memory for them, please try again")
        self.used += size

    def give_back(self, size: int) -> None:
        self.used -= size


class MemoryBody:
    """Keeps a body of at most ``max_bytes`` in memory, within ``budget``.

    Its bytes count until ``close``, also after ``clear``: the values that were read from them remain in memory.
    """

    def __init__(self, max_bytes: int, budget: MemoryBudget) -> None:
        self._max_bytes, self._budget = max_bytes, budget
        self._counted = 0
        self._content: bytes | bytearray = bytearray()

    async def write(self, chunk: bytes) -> None:
        """Raises RequestTooLarge, Busy."""
        if len(self._content) + len(chunk) > self._max_bytes:
            raise RequestTooLarge(f"request body too large: more than {self._max_bytes // MIB} MiB")
        self._count(len(chunk))
        self._content += chunk

    def decompress(self, max_bytes: int) -> None:
        """Replace a body that is compressed with zstd. Raises BadRequest if it has more than ``max_bytes`` then."""
        # Few requests are compressed, and the others do not wait for this import.
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        try:
            content = decompressor.stream_reader(self._content, read_across_frames=True).read(max_bytes + 1)
        except zstandard.ZstdError as error:
            raise BadRequest(f"the zstd request body cannot be decompressed: {error}") from None
        if len(content) > max_bytes:
            raise BadRequest(f"http: request body too large: more than {max_bytes // MIB} MiB decompressed")
        self._count(len(content) - len(self._content))
        self._content = content

    def content(self) -> bytes | bytearray:
        return self._content

    def clear(self) -> None:
        """Free the bytes: their values have been read."""
        self._content = b""

    async def close(self) -> None:
        self.clear()
        self._budget.give_back(self._counted)
        self._counted = 0

    def _count(self, more: int) -> None:
        self._budget.take(more)
        self._counted += more


class DiscardedBody:
    """Accepts a body that the reply does not depend on."""

    async def write(self, chunk: bytes) -> None:
        pass

    async def close(self) -> None:
        pass


class UploadedBlob:
    """Writes a body into the store as a blob.

    A worker thread writes large pieces, so that a slow disk blocks this client only. At most one write runs at a time,
    and none continues after the call that started it has returned.
    """

    def __init__(self, writer: BlobWriter, expected: Digest) -> None:
        self._writer, self._expected = writer, expected
        self._pending = bytearray()
        self._lock = asyncio.Lock()

    async def write(self, chunk: bytes) -> None:
        self._pending += chunk
        if len(self._pending) >= _BLOB_PIECE:
            await self._flush()

    async def commit(self) -> None:
        """Store the blob. Raises BadRequest, and stores nothing, if the bytes have another digest."""
        await self._flush()
        await self._in_thread(self._writer.commit, self._expected)

    async def close(self) -> None:
        """Remove the temporary file of an upload that was not committed, and free the bytes that were not written."""
        self._pending = bytearray()
        await self._in_thread(self._writer.abort)

    async def _flush(self) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        await self._in_thread(self._writer.write, data)

    async def _in_thread(self, work: Callable[..., object], *args: object) -> None:
        async with self._lock:
            await finish_in_thread(work, *args)


class SlowClient(Exception):
    """The client did not accept a piece of the reply in time."""


class ReplyWriter:
    """The body of a handler's streamed response; the first piece also sends the headers."""

    write_timeout = WRITE_SECONDS

    def __init__(self, handler: web.RequestHandler) -> None:
        self._handler = handler
        self._pending = bytearray()
        self._flush: asyncio.Future[None] | None = None
        self._closed_by_client = False

    def queue(self, data: bytes) -> None:
        """Queue bytes, to be sent with those of the next ``write``."""
        self._pending += data

    async def write(self, data: bytes | memoryview) -> None:
        """Queue bytes; waits while too many are queued. Raises StreamClosedError, SlowClient."""
        self._pending += data
        self._start_flush()
        while len(self._pending) > MAX_PENDING:
            await self._flushed()
        if self._closed_by_client:
            raise StreamClosedError

    async def write_all(self, parts: Iterable[bytes]) -> None:
        """Write a whole reply piece by piece. Raises StreamClosedError, SlowClient."""
        for part in parts:
            view = memoryview(part)
            for at in range(0, len(part), PIECE):
                await self.write(view[at : at + PIECE])
        await self.close()

    async def close(self) -> None:
        """Wait until the operating system has accepted all bytes. Raises StreamClosedError, SlowClient."""
        while self._flush is not None:
            await self._flushed()
        if self._closed_by_client:
            raise StreamClosedError

    def _start_flush(self) -> None:
        if self._flush is not None or not self._pending:
            return
        self._handler.write(bytes(self._pending[:PIECE]))
        del self._pending[:PIECE]
        self._flush = self._handler.flush()
        self._flush.add_done_callback(self._flush_done)

    def _flush_done(self, flush: asyncio.Future[None]) -> None:
        self._flush = None
        if flush.cancelled() or flush.exception() is not None:
            self._closed_by_client = True
            self._pending.clear()
        self._start_flush()

    async def _flushed(self) -> None:
        if self._flush is None:
            return
        done, _ = await asyncio.wait({self._flush}, timeout=self.write_timeout)
        if not done:
            raise SlowClient
        # _flush_done has run before this line and started the next flush: its callback was added first.
