"""The pool with real runner processes: scripted ones for faults, and real models."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.aio import in_loop
from support.pool_harness import a_gguf, a_model

from ollama_nb.api.options import Options
from ollama_nb.errors import LoadError, RunnerCrashed
from ollama_nb.runner import wire
from ollama_nb.runner.pool import Lease, Pool
from ollama_nb.runner.process import Runner
from ollama_nb.settings import Settings

FAKE = (sys.executable, "-P", str(Path(__file__).parent.parent / "support" / "fake_runner.py"))
STORIES = a_gguf(context_length=512, block_count=5, embedding_length=64, head_count=8, head_count_kv=4)


@contextlib.asynccontextmanager
async def a_pool(*, scripted: bool = True, **settings: object) -> AsyncIterator[Pool]:
    launch = functools.partial(Runner.start, command=FAKE) if scripted else Runner.start
    pool = Pool(Settings(**settings), launch=launch)  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        await pool.close()


async def get(pool: Pool, path: str | Path, **options: int) -> Lease:
    model = replace(a_model("m"), weights=Path(path))
    return await pool.acquire(model, STORIES, Options(num_thread=1, **options), None)


async def text_of(lease: Lease, prompt: str, options: Options) -> str:
    request = wire.CompletionRequest(prompt=prompt, options=options, num_ctx=lease.num_ctx)
    pieces = [item async for item in lease.runner.complete(request)]
    return "".join(item.text for item in pieces if isinstance(item, wire.TextOutput))


@in_loop
async def test_kill_in_mid_stream_then_the_next_request_works() -> None:
    async with a_pool() as pool:
        for _ in range(5):  # kills from outside do not count as crashes
            async with await get(pool, "ok") as lease:
                stream = lease.runner.complete(wire.CompletionRequest(prompt="word !wait", options=Options()))
                await anext(stream)
                os.kill(lease.runner.pid, signal.SIGKILL)
                with pytest.raises(RunnerCrashed, match="an error was encountered while running the model"):
                    await anext(stream)
        async with await get(pool, "ok") as lease:
            assert await text_of(lease, "still here", Options()) == "still here "


@in_loop
async def test_a_crash_does_not_affect_other_models() -> None:
    async with a_pool() as pool, await get(pool, "ok") as one, await get(pool, "other") as other:
        running = asyncio.ensure_future(text_of(other, "a b c " * 200, Options()))
        with pytest.raises(RunnerCrashed):
            await text_of(one, "!die:SIGSEGV", Options())
        assert await running == "a b c " * 200


@in_loop
async def test_a_hanging_load_times_out_and_the_pool_continues() -> None:
    async with a_pool(load_timeout=0.5) as pool:
        with pytest.raises(LoadError, match="timed out"):
            await get(pool, "hang")
    async with a_pool() as pool, await get(pool, "ok") as lease:
        assert lease.runner.alive


@in_loop
async def test_a_model_that_crashes_three_times_while_loading_is_refused() -> None:
    async with a_pool() as pool:
        for _ in range(3):
            with pytest.raises(RunnerCrashed, match="has terminated: died by SIGSEGV"):
                await get(pool, "die:SIGSEGV")
        with pytest.raises(RunnerCrashed, match=r"refused for .* s: .*SIGSEGV"):
            await get(pool, "die:SIGSEGV")


@pytest.mark.model
@in_loop
async def test_a_real_model_is_loaded_shared_loaded_larger_and_unloaded(models: Path) -> None:
    path = models / "stories260K-f32.gguf"
    model = replace(a_model("m"), weights=path)
    greedy = Options(temperature=0.0, num_predict=8)
    async with a_pool(scripted=False) as pool:
        async with await get(pool, path, num_ctx=128) as small, await get(pool, path, num_ctx=64) as smaller:
            assert small.runner is smaller.runner
            assert (small.num_ctx, smaller.num_ctx, small.loaded.n_ctx) == (128, 64, 128)
            texts = await asyncio.gather(*(text_of(lease, "Once upon a time", greedy) for lease in (small, smaller)))
            assert texts == [", there was a little girl"] * 2
        async with await get(pool, path) as large:
            assert large.runner is not small.runner
            assert not small.runner.alive
            assert large.loaded.n_ctx == 512
        (running,) = pool.running()
        assert running.size > 1_000_000
        assert (running.size_vram, running.context_length) == (0, 512)
        assert await pool.unload(model)
        assert not large.runner.alive
        assert pool.running() == []
