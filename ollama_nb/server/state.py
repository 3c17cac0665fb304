"""What the handlers of one server share: the service, the metrics and the requests in flight."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from ollama_nb.server import limits
from ollama_nb.server.dialects.responses.background import Responses
from ollama_nb.server.metrics import Metrics
from ollama_nb.server.neighbours import Neighbours
from ollama_nb.server.streams import MemoryBudget
from ollama_nb.service.service import Service

ERROR_SECONDS = 2.0  # for cancelled requests to send their errors; then their connections are closed
CLOSED_SECONDS = 5.0  # for the requests of closed connections to end

P = ParamSpec("P")
T = TypeVar("T")


class ServerState:
    """One object per server. All methods run in the server's event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.metrics = service.meter = Metrics()
        self.responses = Responses(service.home, service.public)
        self.neighbours: Neighbours | None = None
        self.budget = MemoryBudget(limits.MAX_BODIES)
        self.draining = False
        self._workers = ThreadPoolExecutor(limits.WORKERS, "ollama-nb-json")
        self._hurried = asyncio.Event()
        self.on_work: Callable[[], None] = lambda: None
        """Called when a request that does work begins or ends."""
        self._live: dict[asyncio.Task[None], Callable[[], None] | None] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._last_end = time.monotonic()

    async def in_worker(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read a large body or write a large reply in one of a few threads, so that other streams do not stall."""
        return await asyncio.wrap_future(self._workers.submit(work, *args, **kwargs))

    def enter(
        self, task: asyncio.Task[None], *, works: bool = True, disconnect: Callable[[], None] | None = None
    ) -> None:
        """Count a request until its task ends. ``works`` is False for requests that only read the server's state.

        ``disconnect`` closes the connection of its client.
        """
        self._live[task] = disconnect
        if works:
            self._working.add(task)
            self.on_work()
        task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._live.pop(task, None)
        if task in self._working:
            self._working.discard(task)
            self.on_work()
        self._last_end = time.monotonic()

    @property
    def busy(self) -> int:
        """The number of requests in flight."""
        return len(self._live)

    @property
    def working(self) -> int:
        """The number of requests in flight that do work, and of unfinished batches of this server."""
        return len(self._working) + self.service.batches.active

    def idle_seconds(self) -> float:
        """Seconds since the last request ended, a model was last loaded or a batch was last unfinished."""
        if self._live or self.service.running() or self.service.batches.active:
            self._last_end = time.monotonic()
        return time.monotonic() - self._last_end

    async def drain(self, seconds: float) -> None:
        """Refuse new requests and wait for those in flight; cancel them after ``seconds``.

        Each stream then ends with an error, and the connections of clients that do not read it are closed.
        """
        self.draining = True
        await self._wait_for_requests(seconds)
        self._cancel_all()
        await self._wait_for_requests(ERROR_SECONDS)
        for disconnect in filter(None, list(self._live.values())):
            disconnect()
        if self._live:
            await asyncio.wait(self._live, timeout=CLOSED_SECONDS)
        await self.responses.close()
        await self.metrics.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def hurry(self) -> None:
        """End ``drain`` without its waits."""
        self._hurried.set()
        self._cancel_all()

    async def _wait_for_requests(self, seconds: float) -> None:
        """Wait until no request is in flight, for ``seconds`` at most, or until ``hurry``."""
        hurried = asyncio.ensure_future(self._hurried.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._live and not hurried.done():
                    await asyncio.wait({*self._live, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    def _cancel_all(self) -> None:
        for task in self._live:
            task.cancel()
