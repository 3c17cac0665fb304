"""Residency decisions: single scenarios of events and actions, and random schedules."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool_harness import MIB, a_model

from ollama_nb.api.options import Options
from ollama_nb.errors import Busy, InsufficientMemory, LoadError, RunnerCrashed
from ollama_nb.runner import wire
from ollama_nb.runner.placement import Placement
from ollama_nb.runner.residency import (
    Action,
    Grant,
    Refuse,
    Residency,
    Resident,
    ResidentState,
    StartRunner,
    StopRunner,
    Ticket,
)


def residency(*, models: int = 2, queue: int = 100, free: int = 1 << 40) -> Residency:
    return Residency(max_models=models, max_queue=queue, keep_alive=300.0, free_memory=lambda: free)


def ticket(
    name: str,
    *,
    n_ctx: int = 4096,
    keep_alive: float | None = None,
    bytes_needed: int = MIB,
    options: Options | None = None,
    must_fit: bool = False,
    less: int | None = None,
    **load: Any,
) -> Ticket:
    """``less``: a smaller context, in half of the memory, with which the request can do."""
    wanted = wire.EngineConfig(path=f"/models/{name}", n_ctx=n_ctx, **load)
    smaller = () if less is None else (Placement(msgspec.structs.replace(wanted, n_ctx=less), bytes_needed // 2),)
    place = Placement(wanted, bytes_needed, smaller, must_fit=must_fit)
    return Ticket(a_model(name), place, options or Options(), keep_alive)


def names_of(actions: list[Action]) -> list[tuple[str, str]]:
    """Actions as words: ("start", "a"), ("grant", "a"), …"""
    subjects = [action.ticket if isinstance(action, Grant | Refuse) else action.resident for action in actions]
    return [
        (type(action).__name__.removesuffix("Runner").lower(), subject.key.removeprefix("/models/"))
        for action, subject in zip(actions, subjects, strict=True)
    ]


def loaded(core: Residency, name: str, **wish: Any) -> Resident:
    """A loaded model with one lease on it."""
    core.request(ticket(name, **wish), 0.0)
    resident = core.residents[f"/models/{name}"]
    assert names_of(core.ready(resident, 0.0)) == [("grant", name)]
    return resident


def idle(core: Residency, name: str, **wish: Any) -> Resident:
    resident = loaded(core, name, **wish)
    core.released(resident, 0.0)
    return resident


def test_the_first_request_loads_and_others_join_the_load() -> None:
    core = residency()
    assert names_of(core.request(ticket("a"), 0.0)) == [("start", "a")]
    assert core.request(ticket("a"), 0.0) == []
    (resident,) = core.residents.values()
    assert names_of(core.ready(resident, 0.0)) == [("grant", "a"), ("grant", "a")]
    assert names_of(core.request(ticket("a"), 0.0)) == [("grant", "a")]
    assert resident.leases == 3


def test_one_load_at_a_time() -> None:
    core = residency()
    core.request(ticket("a"), 0.0)
    assert core.request(ticket("b"), 0.0) == []
    assert names_of(core.ready(core.residents["/models/a"], 0.0)) == [("grant", "a"), ("start", "b")]


def test_a_model_expires_after_its_keep_alive_and_never_while_in_use() -> None:
    core = residency()
    resident = loaded(core, "a", keep_alive=10.0)
    assert core.next_tick() is None
    assert core.tick(1e9) == []
    assert core.released(resident, 100.0) == []
    assert core.next_tick() == 110.0
    assert core.tick(109.9) == []
    assert names_of(core.tick(110.0)) == [("stop", "a")]
    assert core.stopped(resident, 110.0) == []
    assert not core.residents


def test_keep_alive_remains_until_a_request_sets_another() -> None:
    core = residency()
    resident = idle(core, "a")
    assert resident.keep_alive == 300.0
    for asked, in_force in ((60.0, 60.0), (None, 60.0), (math.inf, math.inf), (None, math.inf), (5.0, 5.0)):
        core.request(ticket("a", keep_alive=asked), 0.0)
        assert resident.keep_alive == in_force
        core.released(resident, 0.0)
        assert resident.uses[()].expires_at == in_force
    core.request(ticket("a", keep_alive=0.0), 1.0)
    assert names_of(core.released(resident, 1.0)) == [("stop", "a")]


def test_a_smaller_context_shares_and_a_larger_one_reloads() -> None:
    core = residency()
    resident = loaded(core, "a", n_ctx=4096)
    assert names_of(core.request(ticket("a", n_ctx=512), 0.0)) == [("grant", "a")]
    assert core.request(ticket("a", n_ctx=8192), 0.0) == []
    # Later requests wait behind it; otherwise it could starve.
    assert core.request(ticket("a", n_ctx=512), 0.0) == []
    assert core.released(resident, 0.0) == []
    assert names_of(core.released(resident, 0.0)) == [("stop", "a")]
    assert names_of(core.stopped(resident, 0.0)) == [("start", "a")]
    (again,) = core.residents.values()
    assert again.load.n_ctx == 8192
    assert names_of(core.ready(again, 0.0)) == [("grant", "a"), ("grant", "a")]


def test_evicts_idle_residents_first_then_the_shortest_keep_alive_then_by_path() -> None:
    core = residency(models=3)
    busy = loaded(core, "a", keep_alive=1.0)
    long, short = idle(core, "b", keep_alive=60.0), idle(core, "c", keep_alive=30.0)
    assert names_of(core.request(ticket("d"), 0.0)) == [("stop", "c")]
    assert core.tick(0.0) == []  # one eviction at a time
    assert names_of(core.stopped(short, 0.0)) == [("start", "d")]
    assert (busy.state, long.state) == (ResidentState.READY, ResidentState.READY)
    core = residency(models=2)
    idle(core, "z", keep_alive=5.0), idle(core, "y", keep_alive=5.0)
    assert names_of(core.request(ticket("d"), 0.0)) == [("stop", "y")]


def test_a_busy_resident_is_drained() -> None:
    core = residency(models=1)
    busy = loaded(core, "a")
    assert core.request(ticket("b"), 0.0) == []
    assert core.request(ticket("a"), 0.0) == []
    assert names_of(core.released(busy, 0.0)) == [("stop", "a")]
    assert names_of(core.stopped(busy, 0.0)) == [("start", "b")]
    b = core.residents["/models/b"]
    assert names_of(core.ready(b, 0.0)) == [("grant", "b")]
    assert names_of(core.released(b, 0.0)) == [("stop", "b")]  # for the request that waits for a
    assert names_of(core.stopped(b, 0.0)) == [("start", "a")]


def test_another_resident_that_becomes_idle_is_evicted_instead() -> None:
    core = residency(models=2)
    loaded(core, "a"), loaded(core, "b")
    core.request(ticket("c"), 0.0)
    assert core.request(ticket("a"), 0.0) == []
    b = core.residents["/models/b"]
    assert names_of(core.released(b, 0.0)) == [("stop", "b"), ("grant", "a")]
    assert names_of(core.stopped(b, 0.0)) == [("start", "c")]


def test_evicts_when_memory_is_short_and_loads_when_nothing_is_left_to_evict() -> None:
    core = residency(models=3, free=10 * MIB)
    a = idle(core, "a")
    assert names_of(core.request(ticket("b", bytes_needed=11 * MIB), 0.0)) == [("stop", "a")]
    assert names_of(core.stopped(a, 0.0)) == [("start", "b")]


def test_the_queue_is_bounded_but_a_loaded_model_is_not() -> None:
    core = residency(queue=2)
    core.request(ticket("a"), 0.0), core.request(ticket("a"), 0.0)
    (refused,) = core.request(ticket("a"), 0.0)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, Busy)
    assert refused.error.message == "server busy, please try again.  maximum pending requests exceeded"
    core.ready(core.residents["/models/a"], 0.0)
    assert all(names_of(core.request(ticket("a"), 0.0)) == [("grant", "a")] for _ in range(10))


def test_a_caller_that_goes_away_leaves_the_queue_and_an_unwanted_load_stops() -> None:
    core = residency()
    first, second, other = ticket("a"), ticket("a"), ticket("b")
    core.request(first, 0.0), core.request(second, 0.0), core.request(other, 0.0)
    assert core.forget(first, 0.0) == []
    a = core.residents["/models/a"]
    assert names_of(core.forget(second, 0.0)) == [("stop", "a")]
    assert names_of(core.stopped(a, 0.0)) == [("start", "b")]


def test_a_load_that_succeeds_after_it_was_stopped_remains_stopped() -> None:
    core = residency()
    first = ticket("a")
    core.request(first, 0.0)
    a = core.residents["/models/a"]
    core.forget(first, 0.0)
    core.request(ticket("a"), 0.0)
    assert core.ready(a, 0.0) == []
    assert names_of(core.stopped(a, 0.0)) == [("start", "a")]


def test_a_load_that_serves_no_waiting_request_stops() -> None:
    core = residency()
    small, large = ticket("a", n_ctx=512), ticket("a", n_ctx=8192)
    core.request(small, 0.0), core.request(large, 0.0)
    assert names_of(core.forget(small, 0.0)) == [("stop", "a")]


def test_a_failed_load_refuses_all_requests_that_waited_for_it() -> None:
    core = residency()
    core.request(ticket("a"), 0.0), core.request(ticket("a"), 0.0), core.request(ticket("b"), 0.0)
    a = core.residents["/models/a"]
    actions = core.failed(a, LoadError("no"), 0.0)
    assert names_of(actions) == [("refuse", "a"), ("refuse", "a"), ("start", "b")]
    assert names_of(core.request(ticket("a"), 0.0)) == []  # waits behind b's load
    assert names_of(core.ready(core.residents["/models/b"], 0.0)) == [("grant", "b"), ("start", "a")]


def test_after_three_crashes_within_a_minute_a_model_is_refused_for_a_minute() -> None:
    core = residency()
    for second in (0.0, 20.0, 40.0):
        core.request(ticket("a"), second)
        core.failed(core.residents["/models/a"], RunnerCrashed("died by SIGSEGV"), second)
    (refused,) = core.request(ticket("a"), 50.0)
    assert isinstance(refused, Refuse)
    assert "3 times within a minute" in refused.error.message
    assert "refused for 50 s: died by SIGSEGV" in refused.error.message
    assert names_of(core.request(ticket("b"), 50.0)) == [("start", "b")]
    core.ready(core.residents["/models/b"], 50.0)
    assert names_of(core.request(ticket("a"), 100.1)) == [("start", "a")]


def test_crashes_far_apart_and_kills_from_outside_do_not_count() -> None:
    core = residency()
    for second in range(0, 200, 31):
        resident = loaded(core, "a")
        core.died(resident, "died by SIGABRT", float(second))
        assert core.released(resident, float(second)) == []
    for _ in range(10):
        core.died(loaded(core, "b"), "killed by SIGKILL", 0.0, blameless=True)


def test_unload_happens_now_or_when_the_model_becomes_idle() -> None:
    core = residency()
    idle(core, "a"), loaded(core, "b", keep_alive=math.inf)
    assert names_of(core.unload("/models/a", 5.0)) == [("stop", "a")]
    b = core.residents["/models/b"]
    assert core.unload(b.key, 5.0) == []
    assert names_of(core.released(b, 6.0)) == [("stop", "b")]
    assert core.unload("/models/unknown", 5.0) == []


def with_adapter(name: str, adapter: str, **wish: Any) -> Ticket:
    """A request for a model with the weights of ``name`` and an adapter."""
    plain = ticket(name, **wish)
    return replace(plain, model=replace(plain.model, adapters=(Path(adapter),)))


def test_models_that_differ_in_adapters_share_weights_with_separate_keep_alives() -> None:
    core = residency(models=1)
    resident = loaded(core, "a", keep_alive=10.0)
    assert names_of(core.request(with_adapter("a", "x", keep_alive=60.0), 0.0)) == [("grant", "a")]
    assert (resident.leases, len(core.residents)) == (2, 1)
    assert core.released(resident, 0.0) == []
    assert core.tick(20.0) == [], "the one with the adapter is in use"
    assert [*resident.uses] == [(Path("x"),)], "the use without an adapter has ended"
    assert core.released(resident, 20.0, (Path("x"),)) == []
    assert core.next_tick() == 80.0
    assert names_of(core.tick(80.0)) == [("stop", "a")]


def test_unloading_one_use_keeps_the_others() -> None:
    core = residency()
    resident = idle(core, "a")
    core.request(with_adapter("a", "x"), 0.0)
    core.released(resident, 0.0, (Path("x"),))
    assert core.unload("/models/a", 1.0) == []
    assert [*resident.uses] == [(Path("x"),)]
    assert core.unload("/models/a", 1.0, (Path("y"),)) == []
    assert names_of(core.unload("/models/a", 1.0, (Path("x"),))) == [("stop", "a")]


def test_close_stops_everything() -> None:
    core = residency(models=3)
    loaded(core, "a"), idle(core, "b")
    core.request(ticket("c"), 0.0), core.request(ticket("d"), 0.0)
    actions = core.close(Busy("closing"))
    assert names_of(actions) == [("refuse", "c"), ("refuse", "d"), ("stop", "a"), ("stop", "b"), ("stop", "c")]
    assert [names_of(core.stopped(resident, 0.0)) for resident in list(core.residents.values())] == [[], [], []]


class Schedule:
    """Runs a random schedule and checks the invariants after each event."""

    def __init__(self, models: int) -> None:
        self.core = residency(models=models, queue=6, free=100)
        self.models = models
        self.now = 0.0
        self.waiting: list[Ticket] = []
        self.granted: list[Resident] = []
        self.loading: list[Resident] = []
        self.stopping: list[Resident] = []
        self.answers = 0
        self.asked = 0

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartRunner(resident):
                    self.loading.append(resident)
                case StopRunner(resident):
                    assert resident not in self.granted, "stopped while in use"
                    if resident in self.loading:
                        self.loading.remove(resident)
                    self.stopping.append(resident)
                case Grant(ticket, resident):
                    assert resident not in self.loading + self.stopping
                    assert resident.serves(ticket)
                    self.waiting.remove(ticket)
                    self.granted.append(resident)
                    self.answers += 1
                case Refuse(ticket, _):
                    self.waiting.remove(ticket)
                    self.answers += 1
        core = self.core
        assert len(self.loading) <= 1
        assert len(core.residents) <= self.models
        assert core.queue == self.waiting, "a ticket is lost or kept too long"
        for resident in core.residents.values():
            assert resident.leases == self.granted.count(resident)

    def play(self, event: str, number: int) -> None:
        core, now = self.core, self.now
        if event == "request":
            asked = ticket("abcd"[number % 4], n_ctx=(512, 4096)[number // 4 % 2],
                           bytes_needed=(10, 60, 150)[number // 8 % 3],
                           keep_alive=(None, 0.0, 5.0, math.inf)[number // 24 % 4])  # fmt: skip
            self.waiting.append(asked)
            self.asked += 1
            self.take(core.request(asked, now))
        elif event == "forget" and self.waiting:
            gone = self.waiting.pop(number % len(self.waiting))
            self.answers += 1
            self.take(core.forget(gone, now))
        elif event == "load" and self.loading:
            self.take(core.ready(self.loading.pop(), now))
        elif event == "fail" and self.loading:
            self.take(core.failed(self.loading.pop(), RunnerCrashed("crash"), now))
        elif event == "stopped" and self.stopping:
            self.take(core.stopped(self.stopping.pop(number % len(self.stopping)), now))
        elif event == "release" and self.granted:
            self.take(core.released(self.granted.pop(number % len(self.granted)), now))
        elif event == "die":
            alive = [r for r in core.residents.values() if r.state is ResidentState.READY]
            if alive:
                victim = alive[number % len(alive)]
                self.take(core.died(victim, "crash", now))
        elif event == "unload":
            self.take(core.unload(f"/models/{'abcd'[number % 4]}", now))
        elif event == "wait":
            self.now += number / 10
            self.take(core.tick(self.now))

    def drain(self) -> None:
        """Everything that runs ends; then no request may still wait."""
        for _ in range(1000):
            for event in ("stopped", "load", "release"):
                self.play(event, 0)
            if not (self.stopping or self.loading or self.granted):
                break
        assert not self.waiting, "a request waits forever"
        assert self.answers == self.asked


EVENTS = ["request", "request", "forget", "load", "load", "fail", "stopped", "release", "die", "unload", "wait"]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 200)), max_size=60),
)
def test_no_schedule_loses_a_request_or_stops_a_model_in_use(models: int, events: list[tuple[str, int]]) -> None:
    schedule = Schedule(models)
    for event, number in events:
        schedule.play(event, number)
    schedule.drain()


def test_requests_behind_a_load_that_fails_load_with_their_own_options() -> None:
    """F15: only tickets that wanted exactly the failing load are refused with it."""
    core = residency()
    core.request(ticket("a", options=Options(num_thread=3), n_threads=3), 0.0)
    for _ in range(5):
        assert core.request(ticket("a"), 0.0) == []
    failing = core.residents["/models/a"]
    assert names_of(core.failed(failing, RunnerCrashed("no"), 0.0)) == [("refuse", "a"), ("start", "a")]
    resident = core.residents["/models/a"]
    assert resident.load.n_threads == 0
    assert names_of(core.ready(resident, 0.0)) == [("grant", "a")] * 5


def test_crashes_count_against_the_way_of_loading_that_crashed() -> None:
    """F15: three crashes with the options of one request do not refuse requests without them."""
    core = residency()
    for _ in range(3):
        core.request(ticket("a", n_threads=9), 0.0)
        assert names_of(core.failed(core.residents["/models/a"], RunnerCrashed("no"), 0.0)) == [("refuse", "a")]
    assert names_of(core.request(ticket("a", n_threads=9), 0.0)) == [("refuse", "a")]
    assert names_of(core.request(ticket("a", n_threads=9, n_seq=4), 0.0)) == [("refuse", "a")], "same but for memory"
    assert names_of(core.request(ticket("a"), 0.0)) == [("start", "a")]


def test_a_load_that_cannot_fit_is_refused_with_sizes_and_evicts_nothing() -> None:
    """F16: needed, free and evictable memory are in the error; with and without other models in memory."""
    core = residency(free=10 * MIB)
    for others in range(2):
        (refused,) = core.request(ticket("b", bytes_needed=99 * MIB, must_fit=True), 0.0)
        assert isinstance(refused, Refuse) and isinstance(refused.error, InsufficientMemory)
        assert "about 103 MB with a context of 4096 tokens, 10 MB are free" in refused.error.message
        assert f"frees about {'5.2 MB' if others else '0 B'}" in refused.error.message
        assert not core.queue
        if not others:
            idle(core, "a", bytes_needed=5 * MIB)
    assert core.residents["/models/a"].idle


def test_a_refused_load_does_not_hold_up_the_next_in_the_queue() -> None:
    """F16: the walk over the queue continues behind a load that does not fit."""
    free = [1 << 40]
    core = Residency(max_models=1, max_queue=9, keep_alive=300.0, free_memory=lambda: free[0])
    busy = loaded(core, "a")
    assert core.request(ticket("b", bytes_needed=99 * MIB, must_fit=True), 0.0) == []
    assert core.request(ticket("c", must_fit=True), 0.0) == []
    free[0] = 2 * MIB
    actions = names_of(core.released(busy, 0.0)) + names_of(core.stopped(busy, 0.0))
    assert [action for action in actions if action[1] != "a"] == [("refuse", "b"), ("start", "c")]


def test_a_load_without_memory_is_tried_once_with_a_smaller_automatic_context() -> None:
    """F16: idle models are unloaded, the load is repeated with less, later requests are served by it; then an error."""
    core = residency(models=3)
    other = idle(core, "b")
    core.request(ticket("a", less=2048), 0.0)
    failing = core.residents["/models/a"]
    assert names_of(core.failed(failing, InsufficientMemory("no"), 0.0)) == [("stop", "b")]
    assert names_of(core.stopped(other, 0.0)) == [("start", "a")]
    smaller = core.residents["/models/a"]
    assert smaller.load.n_ctx == 2048
    assert names_of(core.ready(smaller, 0.0)) == [("grant", "a")]
    assert names_of(core.request(ticket("a", less=2048), 0.0)) == [("grant", "a")], "not loaded larger again"

    core = residency()
    core.request(ticket("a", less=2048), 0.0)
    assert names_of(core.failed(core.residents["/models/a"], InsufficientMemory("no"), 0.0)) == [("start", "a")]
    (refused,) = core.failed(core.residents["/models/a"], InsufficientMemory("no"), 0.0)
    assert isinstance(refused, Refuse) and "no; it needs about" in refused.error.message
    core.request(ticket("a"), 0.0)  # its context was asked for
    assert names_of(core.failed(core.residents["/models/a"], InsufficientMemory("no"), 0.0)) == [("refuse", "a")]


def test_an_automatic_context_that_does_not_fit_is_chosen_smaller() -> None:
    core = residency(free=60 * MIB)
    assert names_of(core.request(ticket("a", bytes_needed=99 * MIB, must_fit=True, less=2048), 0.0)) == [("start", "a")]
    assert core.residents["/models/a"].load.n_ctx == 2048
