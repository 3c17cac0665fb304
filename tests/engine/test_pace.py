"""The team of threads on a simulated machine: what it is worth when others compute beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ollama_nb.engine.pace import Team, Watchdog


class Machine:
    """Steps of one row on ``cores`` cores, ``busy`` of which others use; spinning makes an overfull team collapse."""

    def __init__(self, cores: int = 2) -> None:
        self.team = Team(cores)
        self.cores, self.busy, self.now, self.longest = cores, 0, 0.0, 0.0

    def seconds(self, rows: int) -> float:
        size = self.team.size
        return 0.02 * rows / size * (50.0 if size > self.cores - self.busy and size > 1 else 1.0)

    def run(self, until: float, rows: Callable[[int], int] = lambda _: 1) -> int:
        """Compute until that time; return the number of steps that were done."""
        steps = 0
        while self.now < until:
            batch, patience = rows(steps), self.team.patience(rows(steps))
            seconds = self.seconds(batch)
            cut = seconds > patience
            self.now += min(seconds, patience)
            self.team.observe(batch, min(seconds, patience), self.now, cut=cut)
            self.longest = max(self.longest, min(seconds, patience))
            steps += not cut
        return steps


def test_an_idle_machine_keeps_its_full_team() -> None:
    machine = Machine(4)
    machine.run(10.0)
    assert machine.team.size == 4


def test_a_busy_core_is_left_alone_within_a_second() -> None:
    machine = Machine()
    machine.run(1.0)
    machine.busy = 1
    machine.run(2.0)
    assert machine.team.size == 1


def test_looking_again_costs_little_while_the_load_lasts() -> None:
    machine = Machine()
    machine.run(1.0)
    machine.busy = 1
    machine.run(3.0)
    steps = machine.run(63.0)
    assert steps > 0.85 * 60.0 / 0.02


def test_the_full_team_comes_back_when_the_load_is_gone() -> None:
    machine = Machine()
    machine.run(1.0)
    machine.busy = 1
    machine.run(10.0)
    machine.busy = 0
    machine.run(30.0)
    assert machine.team.size == 2


@pytest.mark.parametrize("busy", [1, 2, 3])
def test_as_many_threads_leave_as_cores_are_taken(busy: int) -> None:
    machine = Machine(4)
    machine.run(1.0)
    machine.busy = busy
    machine.run(20.0)
    assert machine.team.size <= 4 - busy


def test_batches_of_changing_size_are_no_reason() -> None:
    machine = Machine(4)
    sizes = [1, 8, 130, 3, 512, 40]
    machine.run(20.0, lambda step: sizes[step % len(sizes)])
    assert machine.team.size == 4


def test_a_growing_context_is_no_reason() -> None:
    team, now = Team(4), 0.0
    for step in range(3000):
        seconds = 0.01 * (1 + step / 1500) * 4 / team.size
        now += seconds
        team.observe(1, seconds, now)
    assert team.size >= 3


def test_one_thread_is_one_thread() -> None:
    team = Team(1)
    assert not any(team.observe(1, seconds, seconds) for seconds in (0.1, 10.0, 0.1, 10.0)) and team.size == 1


def test_a_machine_that_was_busy_from_the_start_begins_with_one_thread() -> None:
    busy, idle = Team(4), Team(4)
    busy.calibrate(together=0.9, alone=0.08)
    idle.calibrate(together=0.02, alone=0.08)
    assert (busy.size, idle.size) == (1, 4)


def test_no_step_is_long_once_its_like_is_known() -> None:
    machine = Machine(4)
    machine.run(1.0)
    machine.busy = 2
    machine.run(60.0)
    assert machine.longest <= 0.1, "a collapsed step would take half a second"


def test_however_often_steps_are_cut_off_work_goes_on() -> None:
    """The larger teams never finish a step in time; one thread is slow too, but it is never cut off."""
    team, now, done = Team(8), 0.0, 0
    team.calibrate(together=0.01, alone=0.05)
    while now < 30.0:
        seconds, patience = (9.0, team.patience(1)) if team.size > 1 else (0.5, 1e9)
        now += min(seconds, patience)
        team.observe(1, min(seconds, patience), now, cut=seconds > patience)
        done += seconds <= patience
    assert done >= 45


def test_the_watchdog_barks_once_when_it_is_not_disarmed() -> None:
    barked = threading.Event()
    dog = Watchdog(barked.set)
    for _ in range(1000):
        dog.arm(60.0)
        dog.disarm()
    assert not barked.is_set()
    dog.arm(0.0)
    assert barked.wait(60.0)
    dog.close()
    dog.close()
