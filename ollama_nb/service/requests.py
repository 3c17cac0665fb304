"""The table of live requests: what each is doing, and a way to stop it.

Rule: a cancelled request ends where it waits, by ``Cancelled``; a request that nobody waits on (its reader is slow)
ends at its next wait. Prompt text never gets in here.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ollama_nb.errors import Cancelled

QUEUED, LOADING, PROMPT, GENERATING = STATES = "queued", "loading", "prompt", "generating"


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One live request as ``/api/queue`` shows it. ``position``: 0 when it is being served, else its place in line."""

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


class LiveRequest:
    """One request from its arrival to its end."""

    def __init__(self, id: str, model: str, kind: str) -> None:
        self.id, self.model, self.kind = id, model, kind
        self.created_at = time.time()
        self.arrived = time.perf_counter()
        self.state = QUEUED
        self.prompt_tokens = 0
        self.output_tokens = 0
        self._drafted = self._accepted = 0
        self._first_token: float | None = None
        self.cancelled = False
        self._waiter: asyncio.Task[object] | None = None

    @property
    def seconds(self) -> float:
        """Time since the request came."""
        return time.perf_counter() - self.arrived

    def token(self, drafted: int = 0, accepted: int = 0) -> None:
        """Count one generated token, and those that were drafted and accepted since the last one."""
        if self._first_token is None:
            self._first_token = time.perf_counter()
        self.state = GENERATING
        self.output_tokens += 1
        self._drafted += drafted
        self._accepted += accepted

    def cancel(self) -> None:
        self.cancelled = True
        if self._waiter is not None:
            self._waiter.cancel()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, ``cancel`` turns the running await into Cancelled; a cancel that came before does so at once.

        The task is interrupted as ``asyncio.timeout`` does it, so a token costs no extra task. A cancellation from
        outside (the client went away) passes through as what it is.
        """
        if self.cancelled:
            raise Cancelled
        task = self._waiter = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        try:
            yield
        except asyncio.CancelledError:
            if self.cancelled and task is not None and task.uncancel() <= before:
                raise Cancelled from None
            raise
        finally:
            self._waiter = None

    def entry(self, position: int) -> QueueEntry:
        elapsed = time.perf_counter() - self._first_token if self._first_token is not None else 0.0
        rate = round(self.output_tokens / elapsed, 2) if elapsed > 0 else 0.0
        return QueueEntry(
            self.id, self.model, self.kind, self.state, position, self.created_at, self.prompt_tokens,
            self.output_tokens, rate, self._drafted, self._accepted,
        )  # fmt: skip


class Requests:
    """All live requests of this server, oldest first."""

    def __init__(self) -> None:
        self._live: dict[int, LiveRequest] = {}
        self._serial = itertools.count()

    @contextmanager
    def enter(self, request_id: str, model: str, kind: str) -> Iterator[LiveRequest]:
        """List a request while the block runs; without an id it gets a random one."""
        live = LiveRequest(request_id or secrets.token_hex(8), model, kind)
        number = next(self._serial)
        self._live[number] = live
        try:
            yield live
        finally:
            del self._live[number]

    def cancel(self, request_id: str) -> bool:
        """Cancel every live request of that id; False when there is none."""
        found = [live for live in self._live.values() if live.id == request_id]
        for live in found:
            live.cancel()
        return bool(found)

    def queue(self) -> list[QueueEntry]:
        """What is waiting and running now, oldest first."""
        places = itertools.count(1)
        return [live.entry(next(places) if live.state == QUEUED else 0) for live in self._live.values()]
