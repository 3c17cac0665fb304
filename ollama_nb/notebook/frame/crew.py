"""Threads that ask about many rows at once, so that the engine's batch is always full.

Rule: what was answered is recorded before anybody is told. However the work ends, no request of it is left running.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from ollama_nb.client.client import Client
from ollama_nb.client.question import STRICT
from ollama_nb.errors import Busy, ConnectError, OllamaError
from ollama_nb.notebook.frame.ledger import Entry, Record

TICK = 0.1
"""Seconds after which the caller is heard, even if no answer came."""
PAUSES = (0.3, 1.0, 3.0, 9.0)
"""Seconds to wait before a busy server is asked again."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question: ``body`` is a prompt or messages, ``rows`` the positions of all rows that it answers."""

    key: str
    body: Any
    rows: tuple[int, ...]


Send = Callable[[Client, Sequence[Task]], list[Entry]]
Outcome = tuple[Task, Entry | OllamaError]


class Crew:
    """``send`` is given ``chunk`` tasks at a time, by ``width`` threads; used in ``with``."""

    def __init__(
        self, client: Client, tasks: Sequence[Task], send: Send, record: Record, *, width: int, chunk: int = 1
    ) -> None:
        self._client, self._send, self._record = client.twin(STRICT), send, record
        chunks = [tuple(tasks[at : at + chunk]) for at in range(0, len(tasks), chunk)]
        self._todo, self._left = iter(chunks), len(tasks)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._outcomes: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"ollama-nb-row-{number}", daemon=True)
            for number in range(min(width, len(chunks)))
        ]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._left:
            self._client.hang_up()
        for thread in self._threads:
            thread.join()

    def outcomes(self) -> Iterator[Outcome | None]:
        """Each task with its answer or error, as they come; None whenever a tick passed without any.

        Raises OllamaError for what concerns all rows: no server, no such model, not allowed.
        """
        while self._left:
            try:
                outcome = self._outcomes.get(timeout=TICK)
            except Empty:
                yield None
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            self._left -= 1
            yield outcome

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                chunk = next(self._todo, None)
            if chunk is None:
                return
            try:
                self._do(chunk)
            except BaseException as error:  # whatever it is, the caller raises it
                self._outcomes.put(error)
                return

    def _do(self, chunk: Sequence[Task]) -> None:
        try:
            entries = self._patiently(chunk)
        except OllamaError as error:
            if _concerns_all(error):
                raise
            if len(chunk) > 1:  # one of them is to blame: find it
                middle = len(chunk) // 2
                self._do(chunk[:middle])
                self._do(chunk[middle:])
            elif not self._stop.is_set():
                self._outcomes.put((chunk[0], error))
            return
        with self._lock:
            self._record.add(entries)
        for task, entry in zip(chunk, entries, strict=True):
            self._outcomes.put((task, entry))

    def _patiently(self, chunk: Sequence[Task]) -> list[Entry]:
        """A server that is busy, was restarted or lost a runner is asked again after a pause."""
        for tried in itertools.count():
            try:
                return self._send(self._client, chunk)
            except OllamaError as error:
                if tried >= _retries(error) or self._stop.wait(PAUSES[tried]):
                    raise
        raise AssertionError


def _retries(error: OllamaError) -> int:
    if isinstance(error, Busy) or error.status == 503:
        return len(PAUSES)
    if isinstance(error, ConnectError):
        return 2
    return 1 if error.status >= 500 else 0


def _concerns_all(error: OllamaError) -> bool:
    return isinstance(error, ConnectError) or error.status in (401, 403, 404)
