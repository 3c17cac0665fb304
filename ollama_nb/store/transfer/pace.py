"""Limits of a transfer: parallel streams, bandwidth, and how often progress is reported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ollama_nb.errors import BadRequest

MAX_STREAMS = 64
CHUNK = 256 << 10
PROGRESS_INTERVAL = 0.06
"""Seconds between two progress lines."""

ProgressCallback = Callable[[int], None]
"""Is told how many bytes are there."""


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """``streams``: parts of one blob at a time. ``rate``: bytes a second of all of them together, 0 for no limit."""

    streams: int = 4
    rate: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.streams <= MAX_STREAMS:
            raise BadRequest(f"streams must be between 1 and {MAX_STREAMS}, not {self.streams}")
        if self.rate < 0:
            raise BadRequest(f"max_rate must be a number of bytes a second, not {self.rate}")


class Throttle:
    """Lets bytes through no faster than the rate, on average from now on."""

    def __init__(self, rate: int, stopped: threading.Event) -> None:
        self._rate = rate
        self._stopped = stopped
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    @property
    def chunk(self) -> int:
        """How many bytes are best asked for at a time: a tenth of a second's, when there is a limit."""
        return min(CHUNK, max(1024, self._rate // 10)) if self._rate else CHUNK

    def take(self, size: int) -> None:
        """Wait until ``size`` bytes may have come; returns early when everything is stopped."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            wait = self._free_at - now
        self._stopped.wait(wait)


def throttled(report: ProgressCallback, total: int | None = None) -> ProgressCallback:
    """Passes on what is more than ever before, not too often, and the end in any case."""
    most, told = -1, 0.0

    def on_progress(done: int) -> None:
        nonlocal most, told
        now = time.monotonic()
        if done > most and (done == total or now - told >= PROGRESS_INTERVAL):
            most, told = done, now
            report(done)

    return on_progress
