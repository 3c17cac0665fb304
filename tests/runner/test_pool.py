"""The pool with scripted runners and a virtual clock: leases, timers, callers that go away."""

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


class PoolHarness:
    """A pool with its scripted launcher and clock."""

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
async def open_pool(measure: Callable[[], MachineMemory] = plenty, **settings: Any) -> AsyncIterator[PoolHarness]:
    harness = PoolHarness(measure, **settings)
    try:
        yield harness
    finally:
        await harness.pool.close()
        assert all(runner.stopped for runner in harness.launcher.runners)


@in_loop
async def test_leases_share_one_process() -> None:
    async with open_pool() as harness:
        async with await harness.get("a") as first, await harness.get("a", options=Options(num_ctx=100)) as second:
            assert first.runner is second.runner
            assert (first.num_ctx, second.num_ctx) == (4096, 100)
            assert first.loaded.n_ctx == 4096
        first.release()  # a second call has no effect
        assert harness.launcher.loads == ["a"]
        assert await harness.pool.stats() == [(a_model("a"), {"pid": 1})]


@in_loop
async def test_concurrent_requests_share_one_load() -> None:
    async with open_pool() as harness:
        harness.launcher.hold = True
        asked = [harness.ask("a") for _ in range(20)]
        await harness.settle()
        assert harness.launcher.loading == 1
        harness.launcher.finish()
        assert len({(await task).runner.pid for task in asked}) == 1


@in_loop
async def test_a_model_is_unloaded_when_its_keep_alive_ends() -> None:
    async with open_pool() as harness:
        lease = await harness.get("a", 60.0)
        harness.clock.advance(1000.0)
        await harness.settle()
        assert harness.names == ["a"]
        lease.release()
        harness.clock.advance(59.9)
        await harness.settle()
        assert harness.names == ["a"]
        harness.clock.advance(0.1)
        assert harness.names == []
        await harness.settle()
        assert harness.launcher.runners[0].stopped


@in_loop
@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_jump_of_the_wall_clock_changes_only_the_reported_expiry(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    async with open_pool() as harness:
        (await harness.get("a", keep_alive=10)).release()
        shown = harness.pool.running()[0].expires_at
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        assert harness.pool.running()[0].expires_at == pytest.approx(shown + jump, abs=30)
        harness.clock.advance(9)
        await harness.settle()
        assert harness.names == ["a"]
        harness.clock.advance(2)
        await harness.settle()
        assert harness.names == []


@in_loop
async def test_keep_alive_zero_and_infinite() -> None:
    async with open_pool(keep_alive=math.inf) as harness:
        (await harness.get("a")).release()
        harness.clock.advance(1e9)
        assert [running.expires_at for running in harness.pool.running()] == [math.inf]
        (await harness.get("a", 0.0)).release()
        assert harness.names == []


@in_loop
async def test_running_shows_the_latest_expiry_first() -> None:
    async with open_pool() as harness:
        (await harness.get("short", 10.0)).release()
        (await harness.get("long", 1000.0)).release()
        in_use = await harness.get("used", 100.0)
        harness.clock.advance(5.0)
        before = time.time()
        found = {running.model.name.model: running.expires_at for running in harness.pool.running()}
        after = time.time()
        assert list(found) == ["long", "used", "short"]
        assert before + 5.0 <= found["short"] <= after + 5.0
        assert before + 100.0 <= found["used"] <= after + 100.0  # it cannot expire earlier than that
        assert [running.size for running in harness.pool.running()] == [102, 103, 101]
        assert {running.context_length for running in harness.pool.running()} == {4096}
        in_use.release()


@in_loop
async def test_more_models_than_allowed_replace_each_other() -> None:
    async with open_pool(max_loaded_models=2) as harness:
        for name in ("a", "b", "c", "a", "b", "c"):
            (await harness.get(name)).release()
        assert harness.launcher.loads == [
            "a",
            "b",
            "c",
            "a",
            "b",
        ]  # a is evicted first (by path), so c was still loaded
        assert sum(runner.alive for runner in harness.launcher.runners) == 2


@in_loop
async def test_a_model_is_evicted_when_memory_is_short() -> None:
    async with open_pool(lambda: MachineMemory(free_memory=200 * MIB)) as harness:
        (await harness.get("a")).release()
        (await harness.get("small")).release()
        assert harness.names == ["small", "a"] or harness.names == ["a", "small"]
        (await harness.get("large", size=500 * MIB)).release()
        assert harness.names == ["large"]


@in_loop
async def test_a_caller_that_goes_away_while_loading_stops_the_load() -> None:
    """F22: the load of a model that no request waits for any more is stopped."""
    async with open_pool() as harness:
        harness.launcher.hold = True
        first, second = harness.ask("a"), harness.ask("b")
        await harness.settle()
        second.cancel()  # in the queue
        await harness.settle()
        first.cancel()
        await harness.settle()
        assert harness.launcher.loads == harness.launcher.cancelled == ["a"]
        harness.launcher.hold = False
        (await harness.get("a")).release()


@in_loop
async def test_a_load_that_is_stopped_before_its_task_ran() -> None:
    async with open_pool() as harness:
        asked = harness.ask("a")
        await asyncio.sleep(0)  # the request has arrived, the load's task has not started
        asked.cancel()
        await harness.settle()
        (await harness.get("a")).release()
        assert harness.launcher.loads[-1:] == ["a"]


@in_loop
async def test_a_caller_cancelled_when_it_is_granted_releases_the_lease() -> None:
    async with open_pool() as harness:
        harness.launcher.hold = True
        asked = harness.ask("a", 50.0)
        await harness.settle()
        harness.launcher.finish()
        asked.cancel()
        await harness.settle()
        harness.clock.advance(60.0)
        await harness.settle()
        assert harness.names == []


@in_loop
async def test_a_dead_runner_is_dropped_and_the_next_request_starts_a_new_one() -> None:
    async with open_pool() as harness:
        lease = await harness.get("a")
        harness.launcher.runners[0].die("killed by SIGKILL", killed=True)
        await harness.settle()
        assert harness.names == []
        lease.release()
        async with await harness.get("a") as again:
            assert again.runner.pid == 2


@in_loop
async def test_a_model_that_keeps_crashing_is_refused_for_a_minute() -> None:
    async with open_pool() as harness:
        for _ in range(3):
            (await harness.get("a")).release()
            harness.launcher.runners[-1].die("died by SIGSEGV")
            await harness.settle()
        with pytest.raises(RunnerCrashed, match="died by SIGSEGV"):
            await harness.get("a")
        (await harness.get("b")).release()
        harness.clock.advance(61.0)
        (await harness.get("a")).release()


@in_loop
async def test_a_failed_load_fails_all_waiting_requests_and_is_retried_later() -> None:
    async with open_pool() as harness:
        harness.launcher.error = LoadError("cannot load the model: bad magic")
        results = await asyncio.gather(harness.get("a"), harness.get("a"), return_exceptions=True)
        assert [str(error) for error in results] == ["cannot load the model: bad magic"] * 2
        harness.launcher.error = None
        (await harness.get("a")).release()


@in_loop
async def test_an_unexpected_failure_fails_all_waiting_requests() -> None:
    async with open_pool() as harness:
        harness.launcher.error = ZeroDivisionError("a bug")  # type: ignore[assignment]
        with pytest.raises(LoadError, match="a bug"):
            await harness.get("a")


@in_loop
async def test_the_queue_is_bounded() -> None:
    async with open_pool(max_queue=3) as harness:
        harness.launcher.hold = True
        asked = [harness.ask("a") for _ in range(10)]
        await harness.settle()
        refused = [task for task in asked if task.done()]
        assert len(refused) == 7
        assert all(isinstance(task.exception(), Busy) for task in refused)
        harness.launcher.finish()
        for task in asked[:3]:
            (await task).release()


@in_loop
async def test_unload() -> None:
    async with open_pool() as harness:
        assert not await harness.pool.unload(a_model("a"))
        (await harness.get("a", math.inf)).release()
        assert await harness.pool.unload(a_model("a"))
        assert harness.launcher.runners[0].stopped
        lease = await harness.get("a", math.inf)
        assert await harness.pool.unload(a_model("a"))
        assert harness.names == ["a"]
        lease.release()
        assert harness.names == []


@in_loop
async def test_a_model_without_weights_is_refused() -> None:
    async with open_pool() as harness:
        with pytest.raises(BadRequest, match="model 'remote:latest' has no weights"):
            await harness.pool.acquire(a_model("remote", weights=False), a_gguf(), Options(), None)


@in_loop
async def test_close_refuses_waiting_requests_and_stops_runners() -> None:
    async with open_pool(max_loaded_models=1) as harness:
        lease = await harness.get("a")
        waiting = harness.ask("b")
        await harness.settle()
        await harness.pool.close()
        with pytest.raises(Busy, match="shutting down"):
            await waiting
        with pytest.raises(Busy, match="shutting down"):
            await harness.get("a")
        assert harness.launcher.loads == ["a"]
        lease.release()


@in_loop
async def test_close_ends_a_load() -> None:
    async with open_pool() as harness:
        harness.launcher.hold = True
        asked = harness.ask("a")
        await harness.settle()
        await harness.pool.close()
        assert harness.launcher.cancelled == ["a"]
        with pytest.raises(Busy):
            await asked
