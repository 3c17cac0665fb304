"""Limits of a transfer: parallel streams, bandwidth, and how often progress is reported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ollama_nb.errors import BadRequest, Cancelled

MAX_STREAMS = 64  # parallel connections for one blob
CHUNK = 256 << 10  # bytes that are read at a time without a rate limit
PROGRESS_INTERVAL = 0.06
"""Minimum number of seconds between two progress lines."""

ProgressCallback = Callable[[int], None]
"""Called with the number of bytes transferred so far."""


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """Limits that the user sets.

    ``streams`` is the number of parallel connections for one blob, ``rate`` the bytes per second of all of them
    together (0 for no limit).
    """

    streams: int = 4
    rate: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.streams <= MAX_STREAMS:
            raise BadRequest(f"streams must be between 1 and {MAX_STREAMS}, not {self.streams}")
        if self.rate < 0:
            raise BadRequest(f"max_rate must be a number of bytes a second, not {self.rate}")


class Throttle:
    """A rate limiter shared by the streams of a transfer. The rate is kept on average from its creation."""

    def __init__(self, rate: int, stopped: threading.Event) -> None:
        self._rate = rate
        self._stopped = stopped
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    @property
    def chunk(self) -> int:
        """Bytes to request at a time: with a rate limit those of a tenth of a second."""
        return min(CHUNK, max(1024, self._rate // 10)) if self._rate else CHUNK

    def check(self) -> None:
        """Raise Cancelled if the transfer was stopped."""
        if self._stopped.is_set():
            raise Cancelled

    def take(self, size: int) -> None:
        """Account for ``size`` bytes and wait as the rate requires. Returns early when the transfer is stopped."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            wait = self._free_at - now
        self._stopped.wait(wait)


def throttled(report: ProgressCallback, total: int | None = None) -> ProgressCallback:
    """Wrap ``report`` so that it is called with increasing values only, at most every ``PROGRESS_INTERVAL`` seconds.

    The value ``total`` is always reported.
    """
    most, reported_at = -1, 0.0

    def on_progress(done: int) -> None:
        nonlocal most, reported_at
        now = time.monotonic()
        if done > most and (done == total or now - reported_at >= PROGRESS_INTERVAL):
            most, reported_at = done, now
            report(done)

    return on_progress
