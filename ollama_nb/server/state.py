"""What the handlers of one server share: the service behind them, and which requests are in flight."""

from __future__ import annotations

import asyncio
import time

from ollama_nb.server.metrics import Metrics
from ollama_nb.server.neighbours import Neighbours
from ollama_nb.service.service import Service


class ServerState:
    """Lives as long as the server. All its methods run in the server's event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.metrics = service.meter = Metrics()
        self.neighbours: Neighbours | None = None
        self.draining = False
        self._live: set[asyncio.Task[None]] = set()
        self._last_end = time.monotonic()

    def enter(self, task: asyncio.Task[None]) -> None:
        """Count a request until its task ends."""
        self._live.add(task)
        task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._live.discard(task)
        self._last_end = time.monotonic()

    @property
    def busy(self) -> int:
        """How many requests are in flight."""
        return len(self._live)

    def idle_seconds(self) -> float:
        """How long no request has been in flight and no model loaded."""
        if self._live or self.service.running():
            self._last_end = time.monotonic()
        return time.monotonic() - self._last_end

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, let those in flight end; after ``seconds`` they are cancelled."""
        self.draining = True
        if self._live:
            await asyncio.wait(self._live, timeout=seconds)
        self.cut()
        if self._live:
            await asyncio.wait(self._live)
        await self.metrics.close()

    def cut(self) -> None:
        """Cancel what is in flight; each stream ends with an error line."""
        for task in self._live:
            task.cancel()
