"""Many concurrent streaming requests from one thread, with the arrival time of each received piece.

The server under test shares the cores with its client, so pieces are only stored during the run and parsed afterwards.
"""

from __future__ import annotations

import bisect
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 600.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One POST to ``path`` of a server, and how to parse a line of its reply."""

    url: str
    path: str
    body: dict[str, Any]
    read: Callable[[dict[str, Any]], tuple[str, int]]
    """Maps a line to its text and the total token count, 0 if the line has none."""


@dataclass(slots=True)
class Flight:
    """A request in flight. Times are from ``time.perf_counter``, in seconds."""

    ask: Ask
    sock: socket.socket
    sent: float
    moments: list[float] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply: the text, the number of tokens, and the arrival time of each line with text."""

    sent: float
    moments: tuple[float, ...]
    text: str
    tokens: int
    last: dict[str, Any]

    @property
    def first(self) -> float:
        """Seconds from the request to the first text."""
        return self.moments[0] - self.sent

    @property
    def end(self) -> float:
        return self.moments[-1]

    @property
    def rate(self) -> float:
        """Tokens per second between the first and the last text."""
        return (self.tokens - 1) / (self.moments[-1] - self.moments[0])


class Load:
    """Concurrent requests; ``wait`` receives until a condition holds."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._running: set[int] = set()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            self.hang_up(key.data)
        self._selector.close()

    def send(self, ask: Ask) -> Flight:
        """Send a request; its reply is received by ``wait``."""
        parts = urlsplit(ask.url)
        body = json.dumps(ask.body).encode()
        head = (
            f"POST {ask.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        sock = socket.create_connection((parts.hostname or "", parts.port or 80))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flight = Flight(ask, sock, time.perf_counter())
        sock.sendall(head.encode() + body)
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, flight)
        return flight

    def wait(self, until: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """Receive until ``until()`` is true. Raises TimeoutError."""
        deadline = time.perf_counter() + timeout
        while not until():
            left = deadline - time.perf_counter()
            if left <= 0 or not self._selector.get_map():
                raise TimeoutError(f"a server did not answer within {timeout:.0f} s")
            for key, _ in self._selector.select(left):
                self._receive(key.data)

    def receive_for(self, seconds: float) -> None:
        """Receive for a fixed time, or until no request is in flight."""
        deadline = time.perf_counter() + seconds
        while self._selector.get_map() and (left := deadline - time.perf_counter()) > 0:
            for key, _ in self._selector.select(left):
                self._receive(key.data)

    def hang_up(self, flight: Flight) -> None:
        """Close the connection, so that the server stops the reply."""
        if not flight.ended:
            self._selector.unregister(flight.sock)
            flight.ended = True
        flight.sock.close()

    def _receive(self, flight: Flight) -> None:
        piece = flight.sock.recv(1 << 18)
        if piece:
            flight.moments.append(time.perf_counter())
            flight.pieces.append(piece)
        else:
            self.hang_up(flight)


def answers(asks: list[Ask]) -> list[Answer]:
    """Run the requests concurrently; return when all have ended."""
    with Load() as load:
        flights = [load.send(ask) for ask in asks]
        load.wait(lambda: all(flight.ended for flight in flights))
    return [read(flight) for flight in flights]


def answer(ask: Ask) -> Answer:
    """Run one request."""
    return answers([ask])[0]


def read(flight: Flight) -> Answer:
    """Decode the received bytes. Raises RuntimeError for an error of the server, and for a reply without text."""
    reply = read_part(flight)
    if not reply.moments:
        raise RuntimeError(f"{flight.ask.path} answered without text: {b''.join(flight.pieces)[:500]!r}")
    return reply


def read_part(flight: Flight) -> Answer:
    """Like ``read``, for a closed connection: there may be no text."""
    moments, texts, tokens, last = [], [], 0, {}
    for moment, line in lines(flight) if flight.pieces else ():
        value = line.removeprefix(b"data: ").strip()
        if not value.startswith(b"{"):
            continue  # blank lines between events, and [DONE]
        last = json.loads(value)
        text, count = flight.ask.read(last)
        tokens = count or tokens
        if text:
            moments.append(moment)
            texts.append(text)
    return Answer(flight.sent, tuple(moments), "".join(texts), tokens or len(moments), last)


def lines(flight: Flight) -> Iterator[tuple[float, bytes]]:
    """The lines of the body, each with the arrival time of its last byte."""
    raw = b"".join(flight.pieces)
    head, _, _ = raw.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"{flight.ask.path}: {raw[:500].decode('utf-8', 'replace')}")
    ends, total = [], 0
    for piece in flight.pieces:
        total += len(piece)
        ends.append(total)
    chunks = _chunks(raw, len(head) + 4) if b"chunked" in head.lower() else iter([(len(raw), raw[len(head) + 4 :])])
    rest = b""
    for end, data in chunks:
        moment = flight.moments[min(bisect.bisect_left(ends, end), len(ends) - 1)]
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield moment, line
    if rest:
        yield flight.moments[-1], rest


def _chunks(raw: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """The chunks of a chunked body: the end offset in ``raw`` and the data. An incomplete chunk is omitted."""
    while (mark := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:mark].split(b";")[0], 16)
        begin, end = mark + 2, mark + 2 + size
        if size == 0 or end > len(raw):
            return
        yield end, raw[begin:end]
        at = end + 2
