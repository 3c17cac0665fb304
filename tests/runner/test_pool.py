"""The pool with scripted runners and a clock that moves when told: leases, timers, callers that go away."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.aio import in_loop
from support.pool_harness import MIB, Launcher, VirtualClock, a_gguf, a_model, plenty

from ollama_nb.api.options import Options
from ollama_nb.errors import BadRequest, Busy, LoadError, RunnerCrashed
from ollama_nb.runner.placement import MachineMemory
from ollama_nb.runner.pool import Lease, Pool
from ollama_nb.settings import Settings


class House:
    """A pool with what it runs on."""

    def __init__(self, measure: Callable[[], MachineMemory], **settings: Any) -> None:
        self.clock = VirtualClock()
        self.launcher = Launcher()
        self.pool = Pool(Settings(**settings), launch=self.launcher, measure=measure, clock=self.clock)  # type: ignore[arg-type]

    async def get(
        self, name: str, keep_alive: float | None = None, *, size: int = MIB, options: Options | None = None
    ) -> Lease:
        return await self.pool.acquire(a_model(name, size=size), a_gguf(), options or Options(), keep_alive)

    def ask(self, name: str, keep_alive: float | None = None) -> asyncio.Task[Lease]:
        return asyncio.create_task(self.get(name, keep_alive))

    @property
    def names(self) -> list[str]:
        return [running.model.name.model for running in self.pool.running()]

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def a_house(measure: Callable[[], MachineMemory] = plenty, **settings: Any) -> AsyncIterator[House]:
    house = House(measure, **settings)
    try:
        yield house
    finally:
        await house.pool.close()
        assert all(runner.stopped for runner in house.launcher.runners)


@in_loop
async def test_a_lease_shares_one_process_and_gives_it_back() -> None:
    async with a_house() as house:
        async with await house.get("a") as first, await house.get("a", options=Options(num_ctx=100)) as second:
            assert first.runner is second.runner
            assert (first.num_ctx, second.num_ctx) == (4096, 100)
            assert first.loaded.n_ctx == 4096
        first.release()  # a second time does nothing
        assert house.launcher.loads == ["a"]
        assert await house.pool.stats() == [(a_model("a"), {"pid": 1})]


@in_loop
async def test_one_load_for_many_who_ask_at_once() -> None:
    async with a_house() as house:
        house.launcher.hold = True
        asked = [house.ask("a") for _ in range(20)]
        await house.settle()
        assert house.launcher.loading == 1
        house.launcher.finish()
        assert len({(await task).runner.pid for task in asked}) == 1


@in_loop
async def test_it_leaves_when_its_time_is_over_and_not_before() -> None:
    async with a_house() as house:
        lease = await house.get("a", 60.0)
        house.clock.advance(1000.0)
        await house.settle()
        assert house.names == ["a"]
        lease.release()
        house.clock.advance(59.9)
        await house.settle()
        assert house.names == ["a"]
        house.clock.advance(0.1)
        assert house.names == []
        await house.settle()
        assert house.launcher.runners[0].stopped


@in_loop
@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_clock_on_the_wall_that_jumps_moves_only_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    async with a_house() as house:
        (await house.get("a", keep_alive=10)).release()
        shown = house.pool.running()[0].expires_at
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        assert house.pool.running()[0].expires_at == pytest.approx(shown + jump, abs=30)
        house.clock.advance(9)
        await house.settle()
        assert house.names == ["a"]
        house.clock.advance(2)
        await house.settle()
        assert house.names == []


@in_loop
async def test_zero_leaves_at_once_and_for_ever_stays() -> None:
    async with a_house(keep_alive=math.inf) as house:
        (await house.get("a")).release()
        house.clock.advance(1e9)
        assert [running.expires_at for running in house.pool.running()] == [math.inf]
        (await house.get("a", 0.0)).release()
        assert house.names == []


@in_loop
async def test_running_shows_the_latest_expiry_first() -> None:
    async with a_house() as house:
        (await house.get("short", 10.0)).release()
        (await house.get("long", 1000.0)).release()
        in_use = await house.get("used", 100.0)
        house.clock.advance(5.0)
        before = time.time()
        found = {running.model.name.model: running.expires_at for running in house.pool.running()}
        after = time.time()
        assert list(found) == ["long", "used", "short"]
        assert before + 5.0 <= found["short"] <= after + 5.0
        assert before + 100.0 <= found["used"] <= after + 100.0  # it cannot leave earlier than that
        assert [running.size for running in house.pool.running()] == [102, 103, 101]
        assert {running.context_length for running in house.pool.running()} == {4096}
        in_use.release()


@in_loop
async def test_more_models_than_fit_take_turns() -> None:
    async with a_house(max_loaded_models=2) as house:
        for name in ("a", "b", "c", "a", "b", "c"):
            (await house.get(name)).release()
        assert house.launcher.loads == ["a", "b", "c", "a", "b"]  # by path a goes first, so c was still there
        assert sum(runner.alive for runner in house.launcher.runners) == 2


@in_loop
async def test_short_memory_evicts() -> None:
    async with a_house(lambda: MachineMemory(free_memory=200 * MIB)) as house:
        (await house.get("a")).release()
        (await house.get("small")).release()
        assert house.names == ["small", "a"] or house.names == ["a", "small"]
        (await house.get("large", size=500 * MIB)).release()
        assert house.names == ["large"]


@in_loop
async def test_a_caller_that_goes_away_while_loading_stops_the_load() -> None:
    async with a_house() as house:
        house.launcher.hold = True
        first, second = house.ask("a"), house.ask("b")
        await house.settle()
        second.cancel()  # in the queue
        await house.settle()
        first.cancel()
        await house.settle()
        assert house.launcher.loads == house.launcher.cancelled == ["a"]
        house.launcher.hold = False
        (await house.get("a")).release()


@in_loop
async def test_a_load_that_is_stopped_before_its_task_ran() -> None:
    async with a_house() as house:
        asked = house.ask("a")
        await asyncio.sleep(0)  # the request is in, the load's task has not begun
        asked.cancel()
        await house.settle()
        (await house.get("a")).release()
        assert house.launcher.loads[-1:] == ["a"]


@in_loop
async def test_a_caller_that_is_cancelled_as_it_is_granted_gives_back() -> None:
    async with a_house() as house:
        house.launcher.hold = True
        asked = house.ask("a", 50.0)
        await house.settle()
        house.launcher.finish()
        asked.cancel()
        await house.settle()
        house.clock.advance(60.0)
        await house.settle()
        assert house.names == []


@in_loop
async def test_a_dead_runner_is_dropped_and_the_next_request_starts_a_new_one() -> None:
    async with a_house() as house:
        lease = await house.get("a")
        house.launcher.runners[0].die("killed by SIGKILL", killed=True)
        await house.settle()
        assert house.names == []
        lease.release()
        async with await house.get("a") as again:
            assert again.runner.pid == 2


@in_loop
async def test_a_model_that_keeps_dying_is_left_alone_for_a_minute() -> None:
    async with a_house() as house:
        for _ in range(3):
            (await house.get("a")).release()
            house.launcher.runners[-1].die("died by SIGSEGV")
            await house.settle()
        with pytest.raises(RunnerCrashed, match="died by SIGSEGV"):
            await house.get("a")
        (await house.get("b")).release()
        house.clock.advance(61.0)
        (await house.get("a")).release()


@in_loop
async def test_a_failed_load_is_told_to_everybody_and_tried_again_next_time() -> None:
    async with a_house() as house:
        house.launcher.error = LoadError("cannot load the model: bad magic")
        results = await asyncio.gather(house.get("a"), house.get("a"), return_exceptions=True)
        assert [str(error) for error in results] == ["cannot load the model: bad magic"] * 2
        house.launcher.error = None
        (await house.get("a")).release()


@in_loop
async def test_an_unexpected_failure_leaves_nobody_waiting() -> None:
    async with a_house() as house:
        house.launcher.error = ZeroDivisionError("a bug")  # type: ignore[assignment]
        with pytest.raises(LoadError, match="a bug"):
            await house.get("a")


@in_loop
async def test_the_queue_is_bounded() -> None:
    async with a_house(max_queue=3) as house:
        house.launcher.hold = True
        asked = [house.ask("a") for _ in range(10)]
        await house.settle()
        refused = [task for task in asked if task.done()]
        assert len(refused) == 7
        assert all(isinstance(task.exception(), Busy) for task in refused)
        house.launcher.finish()
        for task in asked[:3]:
            (await task).release()


@in_loop
async def test_unload() -> None:
    async with a_house() as house:
        assert not await house.pool.unload(a_model("a"))
        (await house.get("a", math.inf)).release()
        assert await house.pool.unload(a_model("a"))
        assert house.launcher.runners[0].stopped
        lease = await house.get("a", math.inf)
        assert await house.pool.unload(a_model("a"))
        assert house.names == ["a"]
        lease.release()
        assert house.names == []


@in_loop
async def test_a_model_without_weights_is_refused() -> None:
    async with a_house() as house:
        with pytest.raises(BadRequest, match="model 'remote:latest' has no weights"):
            await house.pool.acquire(a_model("remote", weights=False), a_gguf(), Options(), None)


@in_loop
async def test_close_refuses_who_waits_and_ends_who_runs() -> None:
    async with a_house(max_loaded_models=1) as house:
        lease = await house.get("a")
        waiting = house.ask("b")
        await house.settle()
        await house.pool.close()
        with pytest.raises(Busy, match="shutting down"):
            await waiting
        with pytest.raises(Busy, match="shutting down"):
            await house.get("a")
        assert house.launcher.loads == ["a"]
        lease.release()


@in_loop
async def test_close_ends_a_load() -> None:
    async with a_house() as house:
        house.launcher.hold = True
        asked = house.ask("a")
        await house.settle()
        await house.pool.close()
        assert house.launcher.cancelled == ["a"]
        with pytest.raises(Busy):
            await asked
