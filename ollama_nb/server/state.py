"""What the handlers of one server share: the service, the metrics and the requests in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ollama_nb.server.dialects.responses.background import Responses
from ollama_nb.server.metrics import Metrics
from ollama_nb.server.neighbours import Neighbours
from ollama_nb.service.service import Service


class ServerState:
    """One object per server. All methods run in the server's event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.metrics = service.meter = Metrics()
        self.responses = Responses(service.home)
        self.neighbours: Neighbours | None = None
        self.draining = False
        self.on_work: Callable[[], None] = lambda: None
        """Called when a request that does work begins or ends."""
        self._live: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._last_end = time.monotonic()

    def enter(self, task: asyncio.Task[None], *, works: bool = True) -> None:
        """Count a request until its task ends. ``works`` is False for requests that only read the server's state."""
        self._live.add(task)
        if works:
            self._working.add(task)
            self.on_work()
        task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._live.discard(task)
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
        """Refuse new requests and wait for those in flight; cancel them after ``seconds``."""
        self.draining = True
        if self._live:
            await asyncio.wait(self._live, timeout=seconds)
        self.cancel_all()
        if self._live:
            await asyncio.wait(self._live)
        await self.responses.close()
        await self.metrics.close()

    def cancel_all(self) -> None:
        """Cancel all requests in flight; each stream ends with an error line."""
        for task in self._live:
            task.cancel()
