"""Runners that hold a vocabulary and no weights, to tokenize without the time and memory of loading a model.

They do not count as loaded models: the pool does not know them, and they are not listed. An idle one ends by itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ollama_nb.errors import Busy, OllamaError
from ollama_nb.runner import wire
from ollama_nb.runner.process import Launch, Runner
from ollama_nb.settings import Settings

MAX_IDLE = 2  # idle vocabularies that are kept
IDLE_SECONDS = 120.0  # after which an idle one ends


class _Entry:
    """One vocabulary runner: its start, the number of its users, and the timer that ends it when idle."""

    def __init__(self, starting: asyncio.Future[Runner]) -> None:
        self.starting = starting
        self.users = 0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def broken(self) -> bool:
        """Its load failed, or its process has ended."""
        if not self.starting.done():
            return False
        return self.starting.cancelled() or bool(self.starting.exception()) or not self.starting.result().alive

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Vocabularies:
    """All vocabulary runners of a server. They belong to the event loop that uses them first."""

    def __init__(
        self,
        settings: Settings,
        *,
        launch: Launch = Runner.start,
        max_idle: int = MAX_IDLE,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._timeout = settings.load_timeout
        self._launch = launch
        self._max_idle, self._idle_seconds = max_idle, idle_seconds
        self._entries: OrderedDict[Path, _Entry] = OrderedDict()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def borrow(self, weights: Path) -> AsyncIterator[Runner]:
        """Yield a runner with the vocabulary of a GGUF file. Raises Busy, LoadError and RunnerCrashed."""
        if self._closed:
            raise Busy("the server is shutting down")
        entry = self._get(weights)
        entry.users += 1
        entry.stop_timer()
        try:
            yield await asyncio.shield(entry.starting)
        finally:
            entry.users -= 1
            self._returned(weights, entry)

    @property
    def pids(self) -> list[int]:
        """The processes that hold a vocabulary."""
        ready = [entry for entry in self._entries.values() if entry.starting.done() and not entry.broken]
        return [entry.starting.result().pid for entry in ready]

    async def close(self) -> None:
        """End every process; returns when all are reaped."""
        self._closed = True
        for weights in list(self._entries):
            self._end(weights)
        while self._ending:
            await asyncio.wait(self._ending)

    def _get(self, weights: Path) -> _Entry:
        entry = self._entries.get(weights)
        if entry is not None and entry.broken:
            self._end(weights)
            entry = None
        if entry is None:
            load = wire.EngineConfig(path=str(weights), n_ctx=4, n_threads=1, n_gpu_layers=0, vocab_only=True)
            entry = self._entries[weights] = _Entry(asyncio.ensure_future(self._launch(load, self._timeout)))
        self._entries.move_to_end(weights)
        return entry

    def _returned(self, weights: Path, entry: _Entry) -> None:
        if entry.users or self._entries.get(weights) is not entry:
            return
        if entry.broken or self._idle_seconds <= 0:
            self._end(weights)
            return
        entry.timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end, weights)
        idle = [path for path, other in self._entries.items() if not other.users]
        for path in idle[: max(0, len(idle) - self._max_idle)]:
            self._end(path)

    def _end(self, weights: Path) -> None:
        entry = self._entries.pop(weights)
        entry.stop_timer()
        task = asyncio.ensure_future(_stop(entry.starting))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _stop(starting: asyncio.Future[Runner]) -> None:
    """Stop a process, also while it starts."""
    if not starting.done():
        starting.cancel()
    with suppress(OllamaError, asyncio.CancelledError):
        await (await starting).stop()
