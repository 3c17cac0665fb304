"""Models in memory: loaded on request, shared, kept alive for a while, unloaded. Carries out ``residency``'s decisions.

One task per resident runs from its load to the end of its process; cancelling the task stops the resident.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

from ollama_nb.api.models import GGUF, Model, Running
from ollama_nb.api.options import Options
from ollama_nb.errors import Busy, LoadError, OllamaError
from ollama_nb.runner import placement, wire
from ollama_nb.runner.children import ProcessEnd
from ollama_nb.runner.placement import MachineMemory
from ollama_nb.runner.process import Launch, Runner
from ollama_nb.runner.residency import (
    Action,
    Grant,
    ModelUse,
    Refuse,
    Residency,
    Resident,
    ResidentState,
    StartRunner,
    StopRunner,
    Ticket,
)
from ollama_nb.settings import Settings

DEFAULT_MODELS = 3  # residents at a time, where the settings give no number
MAX_TIMER = 86_400.0  # seconds
SHUTTING_DOWN = "the server is shutting down"


class Clock(Protocol):
    """The pool's clock in monotonic seconds: the running event loop, or one made for a test."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object]) -> _Timer: ...


class _Timer(Protocol):
    def cancel(self) -> None: ...


class Lease:
    """The right to use a loaded model until it is released; an async context manager.

    ``num_ctx`` is the context size of this request in tokens; the model may be loaded with a larger one.
    """

    def __init__(self, pool: Pool, resident: Resident, model: Model, runner: Runner, num_ctx: int) -> None:
        self._pool: Pool | None = pool
        self._resident, self._model = resident, model
        self.runner = runner
        self.num_ctx = num_ctx

    @property
    def loaded(self) -> wire.EngineFacts:
        return self.runner.loaded

    @property
    def adapters(self) -> wire.Adapters:
        """The adapters that each request to the runner must name, since it may serve other models too."""
        return tuple(wire.Adapter(str(path)) for path in self._model.adapters)

    def release(self) -> None:
        """Release the lease; a second call has no effect."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._released(self._resident, self._model)

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Pool:
    """All runners of a server. It belongs to the event loop that uses it first."""

    def __init__(
        self,
        settings: Settings,
        *,
        launch: Launch = Runner.start,
        measure: Callable[[], MachineMemory] = placement.measure,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._launch = launch
        self._measure = measure
        self._clock_given = clock
        self._residency = Residency(
            max_models=settings.max_loaded_models or DEFAULT_MODELS,
            max_queue=max(1, settings.max_queue),
            keep_alive=settings.keep_alive,
            free_memory=lambda: measure().free_memory,
        )
        self._waiting: dict[Ticket, asyncio.Future[tuple[Resident, Runner]]] = {}
        self._todo: deque[Action] = deque()
        self._acting = False
        self._runners: dict[Resident, Runner] = {}
        self._tasks: dict[Resident, asyncio.Task[None]] = {}
        self._timer: _Timer | None = None
        self._closed = False

    async def acquire(
        self,
        model: Model,
        gguf: GGUF,
        options: Options,
        keep_alive: float | None = None,
    ) -> Lease:
        """Wait until ``model`` is loaded so that it serves ``options``. Cancelling leaves the queue.

        ``keep_alive`` is the number of seconds that the model remains loaded after its last use: inf for no limit, None
        to leave it as it is. Raises Busy when the queue is full, InsufficientMemory when the memory is too small,
        LoadError or RunnerCrashed when the load fails.
        """
        if self._closed:
            raise Busy(SHUTTING_DOWN)
        place = placement.place(model, gguf, options, self._settings, self._measure())
        ticket = Ticket(model, place, options, keep_alive)
        granted = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._act(self._residency.request(ticket, self._now()))
            resident, runner = await granted
        except BaseException:
            self._leave(ticket, granted)
            raise
        finally:
            del self._waiting[ticket]
        return Lease(self, resident, model, runner, min(place.load.n_ctx, resident.load.n_ctx))

    def running(self) -> list[Running]:
        """The loaded models, latest expiry first. Models that share weights are each listed with the full size."""
        to_wall = time.time() - self._now()
        found = [
            Running(
                model=use.model,
                size=runner.loaded.size,
                size_vram=runner.loaded.size_vram,
                expires_at=self._expires_at(use) + to_wall,
                context_length=resident.load.n_ctx,
                slots=resident.load.n_seq,
            )
            for resident, runner in self._runners.items()
            if resident.state is ResidentState.READY
            for use in resident.uses.values()
        ]
        return sorted(found, key=lambda running: -running.expires_at)

    def loaded(self, model: Model) -> Runner | None:
        """The runner that has the weights of ``model`` in memory, with any adapters. This takes no lease."""
        resident = self._residency.residents.get(str(model.weights))
        if resident is None or resident.state is not ResidentState.READY:
            return None
        return self._runners.get(resident)

    async def unload(self, model: Model) -> bool:
        """Unload a model when it is idle; if it is idle now, wait until its process is gone.

        Returns whether it was loaded.
        """
        key = str(model.weights)
        resident = self._residency.residents.get(key)
        if resident is None or model.adapters not in resident.uses:
            return False
        self._act(self._residency.unload(key, self._now(), model.adapters))
        if resident.state is ResidentState.STOPPING:
            await self._wait_stopped([resident])
        return True

    async def stats(self) -> list[tuple[Model, dict[str, Any]]]:
        """Return the counters of every loaded model."""
        ready = [(resident.model, runner) for resident, runner in self._runners.items() if runner.alive]
        counters = await asyncio.gather(*(runner.stats() for _, runner in ready), return_exceptions=True)
        return [(model, found) for (model, _), found in zip(ready, counters, strict=True) if isinstance(found, dict)]

    async def close(self) -> None:
        """Refuse waiting requests and stop every runner; returns when all processes are reaped."""
        self._closed = True
        self._act(self._residency.close(Busy(SHUTTING_DOWN)))
        await self._wait_stopped(self._tasks)

    # actions

    def _act(self, actions: Iterable[Action]) -> None:
        """Carry out actions in order; actions that result from one of them come last."""
        self._todo.extend(actions)
        if self._acting:
            return
        self._acting = True
        try:
            while self._todo:
                self._do(self._todo.popleft())
        finally:
            self._acting = False
        self._set_timer()

    def _do(self, action: Action) -> None:
        match action:
            case StartRunner(resident):
                task = self._tasks[resident] = asyncio.ensure_future(self._run_resident(resident))
                task.add_done_callback(lambda task: self._task_done(resident, task))
            case StopRunner(resident):
                self._tasks[resident].cancel()
            case Grant(ticket, resident):
                if self._waiting[ticket].done():  # cancelled, but its task did not run yet
                    self._released(resident, ticket.model)
                else:
                    self._waiting[ticket].set_result((resident, self._runners[resident]))
            case Refuse(ticket, error):
                if not self._waiting[ticket].done():
                    self._waiting[ticket].set_exception(error)

    async def _run_resident(self, resident: Resident) -> None:
        """Load a model, and wait for the end of its process."""
        runner = await self._launch(resident.load, self._settings.load_timeout)
        try:
            self._runners[resident] = runner
            runner.ended.add_done_callback(lambda ended: self._process_ended(resident, ended.result()))
            self._act(self._residency.ready(resident, self._now()))
            await runner.wait()
        finally:
            await runner.stop()

    def _process_ended(self, resident: Resident, end: ProcessEnd) -> None:
        """A process is gone. Its requests have not failed yet, so none of them can have asked for the model again."""
        self._runners.pop(resident, None)
        if resident.state is ResidentState.READY:
            self._act(self._residency.died(resident, end.cause, self._now(), blameless=end.killed))

    def _task_done(self, resident: Resident, task: asyncio.Task[None]) -> None:
        del self._tasks[resident]
        if task.cancelled():
            self._act(self._residency.stopped(resident, self._now()))
        elif error := task.exception():
            self._act(self._residency.failed(resident, _as_load_error(error), self._now()))

    def _released(self, resident: Resident, model: Model) -> None:
        self._act(self._residency.released(resident, self._now(), model.adapters))

    def _leave(self, ticket: Ticket, granted: asyncio.Future[tuple[Resident, Runner]]) -> None:
        """The caller went away: release the lease that it has just got, or leave the queue."""
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self._released(granted.result()[0], ticket.model)
        else:
            granted.cancel()
            self._act(self._residency.forget(ticket, self._now()))

    async def _wait_stopped(self, residents: Iterable[Resident]) -> None:
        tasks = [task for resident in residents if (task := self._tasks.get(resident))]
        if tasks:
            await asyncio.wait(tasks)

    # time

    @property
    def _clock(self) -> Clock:
        return self._clock_given or asyncio.get_running_loop()

    def _now(self) -> float:
        return self._clock.time()

    def _expires_at(self, use: ModelUse) -> float:
        if use.leases == 0 and use.expires_at is not None:
            return use.expires_at
        return self._now() + use.keep_alive

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        when = self._residency.next_tick()
        if when is None or self._closed:
            self._timer = None
            return
        self._timer = self._clock.call_at(min(when, self._now() + MAX_TIMER), self._tick)

    def _tick(self) -> None:
        self._act(self._residency.tick(self._now()))


def _as_load_error(error: BaseException) -> OllamaError:
    return error if isinstance(error, OllamaError) else LoadError(f"the model cannot be loaded: {error!r}")
