"""How many threads compute, by watching how long steps take.

ggml's threads wait for each other by spinning. When another process wants one of their cores, a step can take fifty
times as long, and a team smaller by one is far faster; notebooks share their cores with other kernels all the time.
Rule: a change of size is a trial of a few steps, kept only if it is faster; and no step of a larger team may take many
times what it should: it is cut off, undone and done again by fewer. ``Team`` is pure: times in, a size out.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

SLOW = 1.6
"""Steps this many times longer than the best known ones ask for a smaller team …"""
COLLAPSED = 4.0
"""… and a single step this much longer does."""
CUT_OFF, LEAST_PATIENCE = 8.0, 0.1
"""A step of several threads is cut off after so many times the best known, at least so many seconds."""
TRIAL = 2
FIRST_WAIT, LONGEST_WAIT = 2.0, 16.0
"""Seconds until a larger team is tried again; a trial that fails doubles them."""


class Team:
    """The number of threads, from 1 to ``most``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = most
        self._best: dict[int, float] = {}
        self._recent: deque[float] = deque(maxlen=5)
        self._trial_from: int | None = None
        self._before = 0.0
        self._waits = {-1: FIRST_WAIT, 1: FIRST_WAIT}
        self._next = {-1: 0.0, 1: 0.0}

    def calibrate(self, together: float, alone: float) -> None:
        """First times of a step of one row, by all threads and by one. A faster one tells of a busy machine."""
        self._best[1] = min(together, alone)
        if alone < together:
            self.size = 1

    def patience(self, rows: int) -> float:
        """Seconds after which a step of so many rows should be cut off; inf: never."""
        best = self._best.get(_kind(rows))
        if self.size == 1 or best is None:
            return math.inf
        return max(LEAST_PATIENCE, CUT_OFF * best * (1 if rows <= 16 else rows))

    def observe(self, rows: int, seconds: float, now: float, *, cut: bool = False) -> bool:
        """Take the time of one step of ``rows`` rows; True: ``size`` has changed, use it from the next step on.

        ``cut``: the step was cut off, so that it would have taken even longer.
        """
        if self.most == 1:
            return False
        ratio = math.inf if cut else self._ratio(rows, seconds)
        if ratio is None:
            return False
        self._recent.append(ratio)
        return self._settled(now) if self._trial_from is None else self._trying(now)

    def _ratio(self, rows: int, seconds: float) -> float | None:
        """Time over the best known for such a batch; None for the first of its kind. The best fades slowly."""
        kind, cost = _kind(rows), seconds if rows <= 16 else seconds / rows
        best = self._best.get(kind)
        if best is None:
            self._best[kind] = cost
            return None
        self._best[kind] = min(best * 1.0005, cost)
        return cost / best

    def _settled(self, now: float) -> bool:
        last, usual = self._recent[-1], self._median()
        slow = last > COLLAPSED or (len(self._recent) >= 3 and usual > SLOW)
        if slow and self.size > 1 and (now >= self._next[-1] or last == math.inf):
            return self._try(self.size - 1, max(last, usual))
        if self.size < self.most and now >= self._next[1]:
            return self._try(self.size + 1, usual)
        return False

    def _try(self, size: int, before: float) -> bool:
        self._before, self._trial_from, self.size = before, self.size, size
        self._recent.clear()
        return True

    def _trying(self, now: float) -> bool:
        """Decide on a trial: keep the new size, go back, or, while all is still collapsed, go down further."""
        if len(self._recent) < TRIAL and self._recent[-1] < max(COLLAPSED, 2 * self._before):
            return False
        assert self._trial_from is not None
        way = 1 if self.size > self._trial_from else -1
        after = max(self._recent)
        if after < self._before * 0.95:
            self._waits[way], self._trial_from = FIRST_WAIT, None
            self._next = {way: now, -way: now + self._waits[-way]}
            return False
        self._recent.clear()
        if way < 0 and after > COLLAPSED and self.size > 1:
            self.size //= 2
            return True
        self.size, self._trial_from = self._trial_from, None
        self._next[way] = now + self._waits[way]
        self._waits[way] = min(2 * self._waits[way], LONGEST_WAIT)
        return True

    def _median(self) -> float:
        return sorted(self._recent)[len(self._recent) // 2] if self._recent else 1.0


def _kind(rows: int) -> int:
    """Small batches are compared with their like only (odd sizes cost more), large ones by rows, roughly."""
    return rows if rows <= 16 else 16 + rows.bit_length()


class Watchdog:
    """Calls ``bark`` when what was armed takes too long. Arming is one assignment; the thread sleeps while unused."""

    PERIOD = 0.05

    def __init__(self, bark: Callable[[], None]) -> None:
        self._bark = bark
        self._deadline = math.inf
        self._wanted = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float) -> None:
        """Bark in so many seconds, unless disarmed; to within a period. inf: never."""
        if seconds == math.inf:
            return
        self._deadline = time.perf_counter() + seconds
        if not self._wanted.is_set():
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()

    def disarm(self) -> None:
        self._deadline = math.inf

    def close(self) -> None:
        """End the thread and wait for it."""
        self._closed = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        quiet = 0
        while not self._closed:
            if quiet > 1.0 / self.PERIOD:
                self._wanted.clear()
                quiet = 0
            self._wanted.wait()
            time.sleep(self.PERIOD)
            quiet = quiet + 1 if self._deadline == math.inf else 0
            if time.perf_counter() > self._deadline:
                self._deadline = math.inf
                self._bark()
