"""Runners that hold a vocabulary and no weights: for counting tokens without the seconds and gigabytes of a load.

Rule: they are no loaded models. They take no place in the pool, are not listed, and go by themselves when idle.
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

MOST = 2
"""So many vocabularies stay when nobody uses them."""
IDLE_SECONDS = 120.0


class _Kept:
    """One vocabulary from its load on: who uses it, and when it goes."""

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

    def keep(self) -> None:
        """Somebody uses it: it does not go."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Vocabularies:
    """All of a server's vocabulary runners. Belongs to the event loop that first uses it."""

    def __init__(
        self, settings: Settings, *, launch: Launch = Runner.start, most: int = MOST, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._timeout = settings.load_timeout
        self._launch = launch
        self._most, self._idle_seconds = most, idle_seconds
        self._kept: OrderedDict[Path, _Kept] = OrderedDict()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def borrow(self, weights: Path) -> AsyncIterator[Runner]:
        """A runner with the vocabulary of a GGUF file, started when there is none. Raises LoadError, RunnerCrashed."""
        if self._closed:
            raise Busy("the server is shutting down")
        kept = self._get(weights)
        kept.users += 1
        kept.keep()
        try:
            yield await asyncio.shield(kept.starting)
        finally:
            kept.users -= 1
            self._given_back(weights, kept)

    @property
    def pids(self) -> list[int]:
        """Processes that hold a vocabulary now."""
        whole = [kept for kept in self._kept.values() if kept.starting.done() and not kept.broken]
        return [kept.starting.result().pid for kept in whole]

    async def close(self) -> None:
        """End every process; returns when all are reaped."""
        self._closed = True
        for weights in list(self._kept):
            self._end(weights)
        while self._ending:
            await asyncio.wait(self._ending)

    def _get(self, weights: Path) -> _Kept:
        kept = self._kept.get(weights)
        if kept is not None and kept.broken:
            self._end(weights)
            kept = None
        if kept is None:
            load = wire.Load(path=str(weights), n_ctx=4, n_threads=1, n_gpu_layers=0, vocab_only=True)
            kept = self._kept[weights] = _Kept(asyncio.ensure_future(self._launch(load, self._timeout)))
        self._kept.move_to_end(weights)
        return kept

    def _given_back(self, weights: Path, kept: _Kept) -> None:
        if kept.users or self._kept.get(weights) is not kept:
            return
        if kept.broken or self._idle_seconds <= 0:
            self._end(weights)
            return
        kept.timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end, weights)
        idle = [other for other, found in self._kept.items() if not found.users]
        for other in idle[: max(0, len(idle) - self._most)]:
            self._end(other)

    def _end(self, weights: Path) -> None:
        kept = self._kept.pop(weights)
        kept.keep()
        task = asyncio.ensure_future(_stop(kept.starting))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _stop(starting: asyncio.Future[Runner]) -> None:
    """End a process, also one that is just starting."""
    if not starting.done():
        starting.cancel()
    with suppress(OllamaError, asyncio.CancelledError):
        await (await starting).stop()
