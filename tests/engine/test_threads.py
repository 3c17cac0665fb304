"""Thread counts: the default for a machine, and tuning on a simulated machine that other processes use too."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ollama_nb.engine.threads import TINY_MODEL, ThreadTuner, Watchdog, default_threads


class Machine:
    """``cores`` cores, of which other processes use ``busy``; with more threads than free cores, steps collapse."""

    def __init__(self, cores: int = 2) -> None:
        self.tuner = ThreadTuner(cores)
        self.cores, self.busy, self.now, self.longest = cores, 0, 0.0, 0.0

    def seconds(self, rows: int) -> float:
        threads = self.tuner.threads
        return 0.02 * rows / threads * (50.0 if threads > self.cores - self.busy and threads > 1 else 1.0)

    def run(self, until: float, rows: Callable[[int], int] = lambda _: 1) -> int:
        """Decode until the time ``until``; return the number of completed steps."""
        steps = 0
        while self.now < until:
            batch, limit = rows(steps), self.tuner.time_limit(rows(steps))
            seconds = self.seconds(batch)
            aborted = seconds > limit
            self.now += min(seconds, limit)
            self.tuner.record(batch, min(seconds, limit), self.now, aborted=aborted)
            self.longest = max(self.longest, min(seconds, limit))
            steps += not aborted
        return steps


def test_an_idle_machine_keeps_all_threads() -> None:
    machine = Machine(4)
    machine.run(10.0)
    assert machine.tuner.threads == 4


def test_a_busy_core_is_given_up_within_a_second() -> None:
    machine = Machine()
    machine.run(1.0)
    machine.busy = 1
    machine.run(2.0)
    assert machine.tuner.threads == 1


def test_trials_cost_little_while_the_load_lasts() -> None:
    machine = Machine()
    machine.run(1.0)
    machine.busy = 1
    machine.run(3.0)
    steps = machine.run(63.0)
    assert steps > 0.85 * 60.0 / 0.02


def test_all_threads_return_when_the_load_is_gone() -> None:
    machine = Machine()
    machine.run(1.0)
    machine.busy = 1
    machine.run(10.0)
    machine.busy = 0
    machine.run(30.0)
    assert machine.tuner.threads == 2


@pytest.mark.parametrize("busy", [1, 2, 3])
def test_busy_cores_are_given_up(busy: int) -> None:
    machine = Machine(4)
    machine.run(1.0)
    machine.busy = busy
    machine.run(20.0)
    assert machine.tuner.threads <= 4 - busy


def test_batches_of_changing_size_change_nothing() -> None:
    machine = Machine(4)
    sizes = [1, 8, 130, 3, 512, 40]
    machine.run(20.0, lambda step: sizes[step % len(sizes)])
    assert machine.tuner.threads == 4


def test_a_growing_context_changes_little() -> None:
    tuner, now = ThreadTuner(4), 0.0
    for step in range(3000):
        seconds = 0.01 * (1 + step / 1500) * 4 / tuner.threads
        now += seconds
        tuner.record(1, seconds, now)
    assert tuner.threads >= 3


def test_a_single_thread_is_never_tuned() -> None:
    tuner = ThreadTuner(1)
    assert not any(tuner.record(1, seconds, seconds) for seconds in (0.1, 10.0, 0.1, 10.0)) and tuner.threads == 1


def test_a_machine_that_is_busy_at_load_starts_with_one_thread() -> None:
    busy, idle = ThreadTuner(4), ThreadTuner(4)
    busy.calibrate(together=0.9, alone=0.08)
    idle.calibrate(together=0.02, alone=0.08)
    assert (busy.threads, idle.threads) == (1, 4)


def test_collapsed_steps_are_aborted() -> None:
    machine = Machine(4)
    machine.run(1.0)
    machine.busy = 2
    machine.run(60.0)
    assert machine.longest <= 0.1, "a collapsed step would take half a second"


def test_aborted_steps_do_not_stop_the_work() -> None:
    """Several threads never finish a step in time; one thread is slow too, but its steps are never aborted."""
    tuner, now, done = ThreadTuner(8), 0.0, 0
    tuner.calibrate(together=0.01, alone=0.05)
    while now < 30.0:
        seconds, limit = (9.0, tuner.time_limit(1)) if tuner.threads > 1 else (0.5, 1e9)
        now += min(seconds, limit)
        tuner.record(1, min(seconds, limit), now, aborted=seconds > limit)
        done += seconds <= limit
    assert done >= 45


def test_the_watchdog_calls_back_unless_disarmed() -> None:
    called = threading.Event()
    watchdog = Watchdog(called.set)
    for _ in range(1000):
        watchdog.arm(60.0)
        watchdog.disarm()
    assert not called.is_set()
    watchdog.arm(0.0)
    assert called.wait(60.0)
    watchdog.close()
    watchdog.close()


# Defaults


def description(root: Path, siblings: dict[int, str], quota: str = "") -> Path:
    for cpu, text in siblings.items():
        folder = root / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    if quota:
        (root / "fs/cgroup").mkdir(parents=True)
        (root / "fs/cgroup/cpu.max").write_text(quota + "\n")
    return root


@pytest.mark.parametrize(
    ("siblings", "quota", "threads"),
    [
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, "", 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "", 4),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "250000 100000", 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "max 100000", 4),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "50000 100000", 1),
        ({}, "", 4),
    ],
    ids=["two threads a core", "four cores", "quota", "no quota", "half a core", "nothing known"],
)
def test_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: dict[int, str], quota: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert default_threads(10**9, description(tmp_path, siblings, quota)) == threads


def test_tiny_models_get_one_thread() -> None:
    assert default_threads(TINY_MODEL - 1) == 1
