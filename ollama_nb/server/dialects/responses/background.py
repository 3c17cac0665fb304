"""Responses in the background: tasks of the server generate them, whether or not a client waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import cast

from ollama_nb.api.events import Event
from ollama_nb.errors import OllamaError, ShuttingDown, StoreError
from ollama_nb.server.dialects.responses.replies import RUNNING, ResponseReply
from ollama_nb.server.dialects.responses.store import TTL, Item, ResponseStore, StoredResponse

POLL_SECONDS = 0.5  # between two looks at the file of a running response, which other servers may change
_log = logging.getLogger("ollama_nb.server")


class BackgroundResponse:
    """One response that a task of this server generates. ``task`` ends when it has been stored."""

    task: asyncio.Task[None]

    def __init__(self, reply: ResponseReply, items: Sequence[Item], responses: Responses) -> None:
        self.reply = reply
        self._items, self._responses = tuple(items), responses
        self._cancelled = self._replaced = self._ended = False
        self._visible = 0  # frames that clients may see
        self._changed = asyncio.Event()

    @property
    def record(self) -> StoredResponse:
        running = self.reply.status in RUNNING
        frames = (() if running else tuple(self.reply.frames)) if self.reply.streamed else None
        owner = self._responses.store.name if running else ""
        return StoredResponse(self.reply.object, self._items, owner, frames)

    async def start(self, events: AsyncIterator[Event]) -> None:
        """Store the response as queued and begin to generate it. Raises StoreError if it cannot be stored."""
        await self._responses.put(self.record)
        self._responses.running[self.reply.id] = self
        self._show()
        self.task = asyncio.ensure_future(self._run(events))

    async def cancel(self) -> None:
        """End the response and wait until that has been stored."""
        self._cancelled = True
        self.task.cancel()
        await asyncio.wait({self.task})

    async def frames(self, after: int) -> AsyncGenerator[str, None]:
        """The frames whose sequence numbers are above ``after``, until the response has ended."""
        place = after + 1
        while not self._ended or place < self._visible:
            if place < self._visible:
                yield self.reply.frames[place]
                place += 1
            else:
                self._changed.clear()
                await self._changed.wait()

    async def _run(self, events: AsyncIterator[Event]) -> None:
        task = asyncio.current_task()
        assert task is not None
        watching = asyncio.ensure_future(self._watch(task))
        try:
            await self._generate(events)
        except OllamaError as error:
            self.reply.fail(self._responses.public(error))
        except asyncio.CancelledError:
            if self._cancelled:
                self.reply.cancel()
            else:
                self.reply.fail(ShuttingDown())
        except Exception:
            _log.exception("response %s failed", self.reply.id)
            self.reply.fail(OllamaError(f"internal error, see the server's log for response {self.reply.id}"))
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await self._store_end()

    async def _generate(self, events: AsyncIterator[Event]) -> None:
        async with aclosing(cast(AsyncGenerator[Event, None], events)) as source:
            async for event in source:
                was_queued = self.reply.status == "queued"
                self.reply.add(event)
                if self.reply.status in RUNNING:
                    self._show()
                    if was_queued:
                        await asyncio.to_thread(self._responses.store.update, self.record)
        if self.reply.status in RUNNING:
            raise OllamaError("the model's reply ended prematurely")

    async def _store_end(self) -> None:
        """Store the ended response before clients see its end. If that fails, it stays in memory."""
        self.reply.conclude()
        try:
            if not self._replaced:
                await asyncio.to_thread(self._responses.store.update, self.record)
        except StoreError as error:
            _log.warning("response %s is in memory only: %s", self.reply.id, error.message)
        else:
            del self._responses.running[self.reply.id]
        self._ended = True
        self._show()

    async def _watch(self, task: asyncio.Task[None]) -> None:
        """End the response when another server has cancelled or deleted it."""
        is_current = True
        while is_current:
            await asyncio.sleep(POLL_SECONDS)
            is_current = await asyncio.to_thread(self._responses.store.is_current, self.reply.id)
        self._cancelled = self._replaced = True
        task.cancel()

    def _show(self) -> None:
        self._visible = len(self.reply.frames)
        self._changed.set()


class Responses:
    """The stored responses, and those that this server generates in the background, by id."""

    def __init__(self, home: Path, public: Callable[[OllamaError], OllamaError]) -> None:
        self.store = ResponseStore(home / "responses")
        self.public = public  # removes from an error what clients must not see
        self.running: dict[str, BackgroundResponse] = {}
        self._tidying: asyncio.TimerHandle | None = None

    async def put(self, record: StoredResponse) -> None:
        """Store a new response, and remove it when it has expired. Raises StoreError."""
        await asyncio.to_thread(self.store.put, record)
        if self._tidying is not None:
            self._tidying.cancel()
        loop = asyncio.get_running_loop()
        self._tidying = loop.call_later(TTL + POLL_SECONDS, loop.run_in_executor, None, self.store.tidy)

    async def close(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
        await asyncio.to_thread(self.store.close)
