"""Measure how long a server's event loop stands still, from outside: by the replies to ``/livez``.

A program of its own sends the requests, because the threads of a test that sends large bodies would delay them::

    with watched_loop(server) as gaps:
        ...  # requests that could block the event loop
    assert gaps.replies > 20 and gaps.longest < 1.0

``replies`` is a count of loop steps: a server that stands still during the whole block sends one or two. Run as a
program, with a URL and headers as JSON, it watches a server until its standard input is closed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

if __name__ != "__main__":
    from support.servers import RunningServer

PERIOD = 0.005  # seconds between a reply and the next request
_TIMEOUT = 60.0  # seconds for one reply


@dataclass
class LoopGaps:
    """The times of all replies, in seconds, in the order of the requests. Complete at the end of the block."""

    seconds: list[float] = field(default_factory=list)

    @property
    def replies(self) -> int:
        return len(self.seconds)

    @property
    def longest(self) -> float:
        return max(self.seconds, default=math.inf)

    def percentile(self, share: float) -> float:
        """The time that the given share of replies (0 to 1) did not exceed."""
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else math.inf


@contextlib.contextmanager
def watched_loop(server: RunningServer) -> Iterator[LoopGaps]:
    """Watch the event loop of ``server`` during the block, on one connection."""
    gaps = LoopGaps()
    command = [sys.executable, str(Path(__file__)), server.url, json.dumps(server.headers)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "watching\n", "the first request to /livez failed"
        yield gaps
    finally:
        process.stdin.close()
        gaps.seconds.extend(map(float, process.stdout.read().split()))
        process.stdout.close()
        process.wait()
    assert process.returncode == 0, "a request to /livez failed"


def _watch(url: str, headers: Mapping[str, str]) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT)
    seconds = [_ask(connection, f"{parts.path}/livez", headers)]
    print("watching", flush=True)
    while not select.select([sys.stdin], [], [], PERIOD)[0]:
        seconds.append(_ask(connection, f"{parts.path}/livez", headers))
    print(*seconds[1:])


def _ask(connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str]) -> float:
    began = time.perf_counter()
    connection.request("GET", path, headers=dict(headers))
    reply = connection.getresponse()
    body = reply.read()
    assert (reply.status, body) == (200, b"ok"), (reply.status, body)
    return time.perf_counter() - began


if __name__ == "__main__":
    _watch(sys.argv[1], json.loads(sys.argv[2]))
