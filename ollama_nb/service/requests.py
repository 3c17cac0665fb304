"""The live requests: state, cancellation, measurements, the wait for a model, and blocking work in a thread.

A cancelled request ends with ``Cancelled`` where it awaits something. One that awaits nothing at that moment, because
its client reads slowly, ends at its next await. Prompt text is never stored here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, Protocol, TypeVar

from ollama_nb.api.events import Done, Event, ParsedEvent, Progress, Report, Stats
from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.options import Options
from ollama_nb.errors import Cancelled
from ollama_nb.runner.pool import Lease, Pool

CLIENT: ContextVar[str] = ContextVar("client", default="")
"""On whose behalf the current task works, for fair shares of a model; see ``engine.fairness``."""

QUEUED, LOADING, PROMPT, GENERATING = "queued", "loading", "prompt", "generating"
STATES = (QUEUED, LOADING, PROMPT, GENERATING)


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One live request as in ``/api/queue``. ``position`` is its place among the waiting ones, 0 when it is served."""

    id: str
    model: str
    kind: str
    state: str
    position: int
    created_at: float
    prompt_tokens: int
    output_tokens: int
    tokens_per_second: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    background: bool = False


class LiveRequest:
    """The state of one request, from its arrival to its end."""

    def __init__(self, id: str, model: str, kind: str, number: int = 0, *, background: bool = False) -> None:
        """``number``: unique among the requests of this server."""
        self.id, self.model, self.kind, self.number, self.background = id, model, kind, number, background
        self.created_at = time.time()
        self.arrived = time.perf_counter()
        self.state = QUEUED
        self.prompt_tokens = 0
        self.output_tokens = 0
        self._drafted = self._accepted = 0
        self._first_token: float | None = None
        self.cancelled = False
        self._waiters: set[asyncio.Task[object]] = set()

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.arrived

    def count_output(self, tokens: int = 1, drafted: int = 0, accepted: int = 0) -> None:
        """Count the tokens that were generated, drafted and accepted since the previous call."""
        if self._first_token is None:
            self._first_token = time.perf_counter()
        self.state = GENERATING
        self.output_tokens += tokens
        self._drafted += drafted
        self._accepted += accepted

    def cancel(self) -> None:
        self.cancelled = True
        for waiter in self._waiters:
            waiter.cancel()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside this context, ``cancel`` makes the current await raise Cancelled; an earlier cancel does so on entry.

        Several tasks may be in it at once, one for each choice of a reply.
        The task is interrupted in the way of ``asyncio.timeout``, so that no extra task per token is needed. A
        cancellation from outside (the client went away) remains a CancelledError.
        """
        if self.cancelled:
            raise Cancelled
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        self._waiters.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self.cancelled and task.uncancel() <= before:
                raise Cancelled from None
            raise
        finally:
            self._waiters.discard(task)

    def entry(self, position: int) -> QueueEntry:
        elapsed = time.perf_counter() - self._first_token if self._first_token is not None else 0.0
        rate = round(self.output_tokens / elapsed, 2) if elapsed > 0 else 0.0
        return QueueEntry(
            self.id, self.model, self.kind, self.state, position, self.created_at, self.prompt_tokens,
            self.output_tokens, rate, self._drafted, self._accepted, self.background,
        )  # fmt: skip


class Requests:
    """All live requests of this server, oldest first."""

    def __init__(self) -> None:
        self._live: dict[int, LiveRequest] = {}
        self._one_left = asyncio.Event()
        self._serial = itertools.count(1)

    @contextmanager
    def enter(self, request_id: str, model: str, kind: str, background: bool = False) -> Iterator[LiveRequest]:
        """List a request while the context is open; an empty id is replaced by a random one."""
        id = request_id or secrets.token_hex(8)
        live = LiveRequest(id, model, kind, next(self._serial), background=background)
        self._live[live.number] = live
        try:
            yield live
        finally:
            del self._live[live.number]
            self._one_left.set()

    async def wait_for_others(self) -> None:
        """Wait until all models compute for background requests only."""
        while any(live.state in (PROMPT, GENERATING) and not live.background for live in self._live.values()):
            self._one_left.clear()
            await self._one_left.wait()

    def cancel(self, request_id: str) -> bool:
        """Cancel every live request with that id. Return whether there was one."""
        found = [live for live in self._live.values() if live.id == request_id]
        for live in found:
            live.cancel()
        return bool(found)

    def queue(self) -> list[QueueEntry]:
        """The waiting and running requests, oldest first."""
        places = itertools.count(1)
        return [live.entry(next(places) if live.state == QUEUED else 0) for live in self._live.values()]


async def acquire(
    pool: Pool, live: LiveRequest, model: Model, gguf: GGUF, options: Options, keep_alive: float | None
) -> Lease:
    """Wait until ``model`` is loaded and lease it. Raises Busy, LoadError, and Cancelled when ``live`` is cancelled."""
    if all(running.model.digest != model.digest for running in pool.running()):
        live.state = LOADING
    with live.interruptible():
        lease = await pool.acquire(model, gguf, options, keep_alive)
    live.state = PROMPT
    return lease


class Meter(Protocol):
    """Receives the figures of all replies. Times are seconds."""

    def first_token(self, model: str, seconds: float) -> None: ...
    def done(self, model: str, reason: str, stats: Stats) -> None: ...
    def given_up(self, phase: str) -> None: ...


class NoMeter:
    """Measures nothing."""

    def first_token(self, model: str, seconds: float) -> None:
        pass

    def done(self, model: str, reason: str, stats: Stats) -> None:
        pass

    def given_up(self, phase: str) -> None:
        pass


_E = TypeVar("_E", bound=Event)
P = ParamSpec("P")
R = TypeVar("R")


class Metering:
    """Reports one reply to a meter. A context manager around the reply; every event passes through ``counted``.

    A reply whose client goes away counts as given up, ``waiting`` for the first token or ``generating``.
    """

    def __init__(self, meter: Meter, model: str) -> None:
        self._meter, self._model = meter, model
        self._began = time.perf_counter()
        self._started = self._ended = False

    def counted(self, event: _E) -> _E:
        """Count an event that is about to be yielded."""
        if not self._started and isinstance(event, ParsedEvent):
            self._started = True
            self._meter.first_token(self._model, time.perf_counter() - self._began)
        elif isinstance(event, Done):
            self._ended = True
            if event.stats is not None:
                self._meter.done(self._model, event.reason, event.stats)
        return event

    def __enter__(self) -> Metering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client_left = error is not None and not isinstance(error, Exception)
        if client_left and not self._ended:
            self._meter.given_up("generating" if self._started else "waiting")


Work = Callable[[Report, threading.Event], None]
"""Blocking work: it reports progress and ends soon after the event is set."""


async def run_in_thread(
    requests: Requests, request_id: str, model: str, kind: str, prepare: Callable[[], Awaitable[Work]]
) -> AsyncGenerator[Progress, None]:
    """Yield what the work reports and raise what it raises. A cancelled request ends with the line ``cancelled``.

    ``prepare`` checks the request and returns the work; its errors are raised before the first line. The thread never
    outlives the generator: closing it sets the event and waits for the thread to end.
    """
    work = await prepare()
    with requests.enter(request_id, model, kind) as live:
        lines: asyncio.Queue[Progress | None] = asyncio.Queue()
        cancelled = threading.Event()
        live.state = LOADING
        ended = _start(work, lines, cancelled)
        try:
            while True:
                with live.interruptible():
                    line = await lines.get()
                if line is None:
                    break
                yield line
        except Cancelled:
            yield Progress("cancelled")
            return
        finally:
            cancelled.set()
            await _wait(ended)
        ended.result()


async def finish_in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run blocking work in a thread. A cancelled caller waits until the work has ended, so that nothing overlaps it."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait({thread})
        if not thread.cancelled():
            thread.exception()  # mark it as retrieved
        raise


def _start(work: Work, lines: asyncio.Queue[Progress | None], cancelled: threading.Event) -> asyncio.Future[None]:
    """Start ``work`` in a thread of its own: a few long pulls would fill the loop's pool. Return its outcome."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def call(function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(function, *arguments)

    def body() -> None:
        try:
            work(lambda line: call(lines.put_nowait, line), cancelled)
        except BaseException as error:
            call(ended.set_exception, error)
        else:
            call(ended.set_result, None)
        call(lines.put_nowait, None)

    threading.Thread(target=body, name="ollama-nb-transfer", daemon=True).start()
    return ended


async def _wait(ended: asyncio.Future[None]) -> None:
    """Wait for the thread even if this task is cancelled meanwhile. Its error is not raised here."""
    interrupted = False
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            interrupted = True
    ended.exception()
    if interrupted:
        raise asyncio.CancelledError
