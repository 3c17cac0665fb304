"""Requests over plain sockets, abandoned or read slowly on purpose, and a ledger with the outcome of each of them."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Reply = tuple[int, list[dict[str, Any]]]
SECONDS = 120.0  # for a complete reply
KEPT_FAILURES = 50  # described in the report; the others are only counted


class Abandoned(Exception):
    """The client has closed the connection before the reply was complete."""


@dataclass
class Ledger:
    """What became of every request. ``answered`` has the ids of complete replies."""

    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def start(self, kind: str) -> str:
        """Count a request and return its id."""
        with self.lock:
            self.counts[kind] += 1
            return f"soak-{next(self.numbers)}"

    def end(self, outcome: str, request_id: str = "") -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            if request_id:
                self.answered.add(request_id)

    def fail(self, what: str) -> None:
        """Record a wrong, missing or double answer."""
        with self.lock:
            self.outcomes["failed"] += 1
            if len(self.failures) < KEPT_FAILURES:
                self.failures.append(what)

    @property
    def sent(self) -> int:
        return sum(self.counts.values())


class Gate:
    """Holds all clients back while the server is measured."""

    def __init__(self) -> None:
        self._open, self._inside, self._changed = True, 0, threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self, seconds: float) -> bool:
        """Let no more clients in and wait until all are out; return whether they are."""
        with self._changed:
            self._open = False
            return self._changed.wait_for(lambda: not self._inside, seconds)

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()


class Wire:
    """One client's connection, kept open between requests as real clients do."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def ask(
        self, method: str, path: str, body: Any, request_id: str, *, leave: float | None = None, pause: float = 0.0
    ) -> Reply:
        """Send a request and return the status and the objects of its reply.

        Raises Abandoned if the reply is incomplete ``leave`` seconds after the request. With ``pause``, sleep that many
        seconds after each line.
        """
        deadline = time.monotonic() + (SECONDS if leave is None else leave)
        try:
            reply = self._send(method, path, body, request_id, deadline)
            objects = deque[dict[str, Any]]()
            if reply.headers.get("X-Request-Id") != request_id:
                raise AssertionError(f"the reply has the id {reply.headers.get('X-Request-Id')}")
            for line in _lines(reply, self._sock, deadline, pause):
                if line.startswith(b"data: "):
                    line = line[6:]
                elif line.startswith((b"event: ", b": ")):
                    continue
                objects.append({"end": True} if line == b"[DONE]" else json.loads(line))
            return reply.status, list(objects)
        except TimeoutError:
            self.close()
            if leave is None:
                raise
            raise Abandoned from None
        except BaseException:
            self.close()
            raise

    @property
    def _sock(self) -> Any:
        assert self._connection is not None
        return self._connection.sock

    def _send(self, method: str, path: str, body: Any, request_id: str, deadline: float) -> http.client.HTTPResponse:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"X-Request-Id": request_id, "Content-Type": "application/json"}
        for fresh in (False, True):
            left = max(1e-4, deadline - time.monotonic())
            if self._connection is None:
                fresh = True
                self._connection = http.client.HTTPConnection(self._address, timeout=left)
                self._connection.connect()
            self._sock.settimeout(left)
            try:
                self._connection.request(method, path, data, headers)
                return self._connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self.close()  # an idle connection that the server has closed
                if fresh:
                    raise
        raise AssertionError("unreachable")


def _lines(reply: http.client.HTTPResponse, sock: Any, deadline: float, pause: float) -> Iterator[bytes]:
    """The lines of a reply that are not empty."""
    if not pause and reply.headers.get("Transfer-Encoding") != "chunked":
        yield from filter(None, reply.read().split(b"\n"))
        return
    while line := reply.readline():
        if pause:
            time.sleep(pause)
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        if reply.fp is not None:
            sock.settimeout(left)
        if line := line.strip():
            yield line
