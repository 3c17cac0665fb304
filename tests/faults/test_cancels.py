"""A request whose caller disconnects frees its slot in a real runner at once, in whatever state it is.

The measured times are in the report of the run (``-rP``). The bounds are generous because test machines are busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.models import HEAVY_VOCAB, heavy

from ollama_nb.api.options import Options
from ollama_nb.runner import wire
from ollama_nb.runner.process import Runner

pytestmark = pytest.mark.model
GREEDY = Options(temperature=0.0, num_predict=24)
ENDLESS = Options(temperature=0.8, seed=1, num_predict=100_000)
PROMPT = tuple(range(300, 340))
"""Words of the random model's vocabulary; after its other tokens it generates nothing."""
PROMPT_TOKENS = 6000

counts = pytest.mark.parametrize("count", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slow model that never ends a reply by itself."""
    return heavy(tmp_path_factory.mktemp("models") / "heavy.gguf")


@contextlib.asynccontextmanager
async def running(path: Path, **load: Any) -> AsyncIterator[Runner]:
    """A runner that is checked for leaks at the end: slots, requests and descriptors, on both sides."""
    runner = await Runner.start(wire.EngineConfig(path=str(path), n_threads=1, **load))
    try:
        await ask(runner)  # descriptors of the first request are open now
        before = descriptors(runner.pid), descriptors()
        yield runner
        stats = await until(runner, lambda stats: not stats["busy_slots"])
        assert (stats["waiting"], runner.busy) == (0, 0)
        assert (descriptors(runner.pid), descriptors()) == before
        texts = await asyncio.gather(*(ask(runner) for _ in range(stats["slots"])))
        assert all(len(text.split()) == GREEDY.num_predict for text in texts), "every slot still serves"
    finally:
        await runner.stop()


def descriptors(pid: int | str = "self") -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def ask(runner: Runner) -> str:
    items = [item async for item in runner.complete(wire.CompletionRequest(tokens=PROMPT, options=GREEDY))]
    return "".join(item.text for item in items if isinstance(item, wire.TextOutput))


async def until(runner: Runner, met: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Poll the runner's statistics until the condition holds; it answers between two steps."""
    while not met(stats := await runner.stats()):
        pass
    return stats


async def abort_all(
    runner: Runner, count: int, one: Callable[[random.Random], Awaitable[None]], free: Callable[[dict[str, Any]], bool]
) -> list[float]:
    """Start and abandon ``count`` requests; return for how many seconds each kept its slot, in ascending order."""
    dice, waits = random.Random(count), []
    for _ in range(count):
        await one(dice)
        left = time.perf_counter()
        await until(runner, free)
        waits.append(time.perf_counter() - left)
    return sorted(waits)


def report(what: str, waits: list[float]) -> float:
    """Print the times; return the 99th percentile."""
    p50, p99 = waits[len(waits) // 2], waits[-1 - len(waits) // 100]
    print(f"{len(waits)} aborts {what}: free after {p50 * 1e3:.1f} ms (median), {p99 * 1e3:.1f} ms (p99), "
          f"{waits[-1] * 1e3:.1f} ms (longest)")  # fmt: skip
    return p99


@counts
@in_loop
async def test_while_decoding(slow_model: Path, count: int) -> None:
    """F20, G4: another reply continues meanwhile."""

    async def one(dice: random.Random) -> None:
        stream = runner.complete(wire.CompletionRequest(tokens=PROMPT, options=ENDLESS))
        for _ in range(dice.randrange(1, 6)):
            await anext(stream)
        await stream.aclose()

    async with running(slow_model, n_ctx=4096, n_seq=4) as runner:
        bystander = runner.complete(wire.CompletionRequest(tokens=PROMPT, options=ENDLESS))
        await anext(bystander)
        waits = await abort_all(runner, count, one, lambda stats: stats["busy_slots"] == 1)
        assert runner.busy == 1, "nobody else's reply has ended"
        await anext(bystander)
        await bystander.aclose()
    assert report("while decoding", waits) < 30


@counts
@in_loop
async def test_in_prefill(slow_model: Path, count: int) -> None:
    """F21, G4: all prompts differ from the first token; each is cancelled within its first tenth of a second."""
    runs: list[dict[str, Any]] = []

    async def one(dice: random.Random) -> None:
        tokens = tuple(dice.randrange(300, HEAVY_VOCAB) for _ in range(PROMPT_TOKENS))
        reading = asyncio.ensure_future(drain(runner, tokens))
        await until(runner, lambda stats: stats["busy_slots"] == 1)
        await asyncio.sleep(dice.uniform(0, 0.1))
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        assert reading.cancelled(), "it was still being read"

    async with running(slow_model, n_ctx=8192, n_seq=2) as runner:
        runs.append(await runner.stats())
        waits = await abort_all(runner, count, one, lambda stats: stats["busy_slots"] == 0)
        runs.append(await runner.stats())
    read, written = (runs[1][name] - runs[0][name] for name in ("prompt_tokens", "output_tokens"))
    assert written == 0 and read < count * PROMPT_TOKENS / 2
    assert runs[1]["aborts"] > runs[0]["aborts"], "native calls were stopped in the middle"
    assert report("in prefill", waits) < 60


async def drain(runner: Runner, tokens: tuple[int, ...]) -> None:
    async for _ in runner.complete(wire.CompletionRequest(tokens=tokens, options=GREEDY)):
        pass


@counts
@in_loop
async def test_while_queued(slow_model: Path, count: int) -> None:
    """F22, G4: both slots are taken; a waiting request leaves the queue without an effect on the running ones."""

    async def one(dice: random.Random) -> None:
        waiting = [asyncio.ensure_future(ask(runner)) for _ in range(dice.randrange(1, 4))]
        await until(runner, lambda stats: stats["waiting"] == len(waiting))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert all(task.cancelled() for task in waiting)

    async with running(slow_model, n_ctx=4096, n_seq=2) as runner:
        streams = [runner.complete(wire.CompletionRequest(tokens=PROMPT, options=ENDLESS)) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        waits = await abort_all(runner, count, one, lambda stats: stats["waiting"] == 0)
        assert ((await runner.stats())["busy_slots"], runner.busy) == (2, 2)
        for stream in streams:
            await anext(stream)
            await stream.aclose()
    assert report("while queued", waits) < 30
