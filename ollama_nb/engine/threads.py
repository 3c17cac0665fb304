"""How many threads compute: the default for a machine, tuning by the duration of steps, and a watchdog.

ggml's threads wait for each other by spinning. When another process uses one of their cores, a step can take fifty
times as long, and one thread less is far faster; notebooks share their cores with other kernels all the time.

``ThreadTuner`` is pure: durations in, a thread count out. A change is a trial of a few steps and is kept only if it is
faster. A step with several threads that takes many times the expected duration is aborted (``Watchdog``), undone and
repeated with fewer threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

TINY_MODEL = 20_000_000  # parameters; below, a second thread costs more in waiting than it computes

SLOW = 1.6  # median duration over the best known one that starts a trial with one thread less ...
COLLAPSED = 4.0  # ... and the ratio of a single step that does
LIMIT, MIN_LIMIT = 8.0, 0.1  # a step is aborted after LIMIT times the best known duration, at least MIN_LIMIT seconds
TRIAL_STEPS = 2
FIRST_WAIT, MAX_WAIT = 2.0, 16.0  # seconds until more threads are tried again; doubled by each failed trial
SMALL_BATCH = 16  # rows; smaller batches are compared with the same size only
IMPROVED = 0.95  # a trial succeeds below this share of the previous ratio
DRIFT = 1.0005  # growth of the best known duration per step: contexts grow, steps become slower


def default_threads(n_params: int, root: Path = Path("/sys")) -> int:
    """Return the thread count for a model: the physical cores that this process may use, one for a tiny model."""
    if n_params < TINY_MODEL:
        return 1
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_core(root, cpu) for cpu in usable}
    return max(1, min(len(cores), _quota(root)))


def usable_processors() -> int:
    """Return the number of logical processors that this process may use: more threads only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _core(root: Path, cpu: int) -> str:
    """Identify the core of a logical processor by the list of processors that share it."""
    try:
        return (root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(root: Path) -> int:
    """Return the whole processors of the container's quota (cgroup v2, then v1)."""
    try:
        quota, period = (root / "fs/cgroup/cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return 1 << 16
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return 1 << 16  # "max" or -1: no quota
    return max(1, int(quota) // int(period))


class ThreadTuner:
    """Chooses ``threads``, from 1 to ``max_threads``."""

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self.threads = max_threads
        self._best: dict[int, float] = {}
        self._recent: deque[float] = deque(maxlen=5)  # durations over the best known ones
        self._trial_from: int | None = None
        self._before = 0.0
        self._waits = {-1: FIRST_WAIT, 1: FIRST_WAIT}  # by direction: fewer, more
        self._next = {-1: 0.0, 1: 0.0}

    def calibrate(self, together: float, alone: float) -> None:
        """Take the durations of a one-row step with all threads and with one; start with the faster of the two."""
        self._best[1] = min(together, alone)
        if alone < together:
            self.threads = 1

    def time_limit(self, rows: int) -> float:
        """Return the seconds after which a step with ``rows`` rows should be aborted; inf: never."""
        best = self._best.get(_kind(rows))
        if self.threads == 1 or best is None:
            return math.inf
        return max(MIN_LIMIT, LIMIT * best * (1 if rows <= SMALL_BATCH else rows))

    def record(self, rows: int, seconds: float, now: float, *, aborted: bool = False) -> bool:
        """Record the duration of a step; return whether ``threads`` has changed for the next one.

        ``aborted``: the step reached its time limit and would have taken longer than ``seconds``.
        """
        if self.max_threads == 1:
            return False
        ratio = math.inf if aborted else self._ratio(rows, seconds)
        if ratio is None:
            return False
        self._recent.append(ratio)
        return self._consider_trial(now) if self._trial_from is None else self._judge_trial(now)

    def _ratio(self, rows: int, seconds: float) -> float | None:
        """Return the duration over the best known one for such a batch; None for the first of its kind."""
        kind, cost = _kind(rows), seconds if rows <= SMALL_BATCH else seconds / rows
        best = self._best.get(kind)
        if best is None:
            self._best[kind] = cost
            return None
        self._best[kind] = min(best * DRIFT, cost)
        return cost / best

    def _consider_trial(self, now: float) -> bool:
        last, usual = self._recent[-1], self._median()
        slow = last > COLLAPSED or (len(self._recent) >= 3 and usual > SLOW)
        if slow and self.threads > 1 and (now >= self._next[-1] or last == math.inf):
            return self._start_trial(self.threads - 1, max(last, usual))
        if self.threads < self.max_threads and now >= self._next[1]:
            return self._start_trial(self.threads + 1, usual)
        return False

    def _start_trial(self, threads: int, before: float) -> bool:
        self._before, self._trial_from, self.threads = before, self.threads, threads
        self._recent.clear()
        return True

    def _judge_trial(self, now: float) -> bool:
        """Keep the new count, return to the old one, or halve it while steps are still collapsed."""
        if len(self._recent) < TRIAL_STEPS and self._recent[-1] < max(COLLAPSED, 2 * self._before):
            return False
        assert self._trial_from is not None
        direction = 1 if self.threads > self._trial_from else -1
        after = max(self._recent)
        if after < self._before * IMPROVED:
            self._waits[direction], self._trial_from = FIRST_WAIT, None
            self._next = {direction: now, -direction: now + self._waits[-direction]}
            return False
        self._recent.clear()
        if direction < 0 and after > COLLAPSED and self.threads > 1:
            self.threads //= 2
            return True
        self.threads, self._trial_from = self._trial_from, None
        self._next[direction] = now + self._waits[direction]
        self._waits[direction] = min(2 * self._waits[direction], MAX_WAIT)
        return True

    def _median(self) -> float:
        return sorted(self._recent)[len(self._recent) // 2] if self._recent else 1.0


def _kind(rows: int) -> int:
    """Group batch sizes that are comparable: small ones exactly (odd sizes cost more), large ones by powers of two."""
    return rows if rows <= SMALL_BATCH else SMALL_BATCH + rows.bit_length()


class Watchdog:
    """Calls ``callback`` when an armed deadline passes.

    Arming is one assignment, so that every step can afford it. The thread sleeps while no deadline is armed. Without a
    thread, because the system has none left, late steps are not aborted.
    """

    PERIOD = 0.05  # seconds; accuracy of the deadline

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._deadline = math.inf
        self._wanted = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float) -> None:
        """Call ``callback`` after ``seconds`` unless disarmed first; inf: never."""
        if seconds == math.inf:
            return
        self._deadline = time.perf_counter() + seconds
        if not self._wanted.is_set():
            self._wanted.set()
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                with contextlib.suppress(RuntimeError):  # can't start new thread
                    thread.start()
                    self._thread = thread

    def disarm(self) -> None:
        self._deadline = math.inf

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._closed = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        idle_periods = 0
        while not self._closed:
            if idle_periods > 1.0 / self.PERIOD:
                self._wanted.clear()
                idle_periods = 0
            self._wanted.wait()
            time.sleep(self.PERIOD)
            idle_periods = idle_periods + 1 if self._deadline == math.inf else 0
            if time.perf_counter() > self._deadline:
                self._deadline = math.inf
                self._callback()
