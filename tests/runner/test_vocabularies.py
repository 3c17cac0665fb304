"""Vocabulary runners: shared while in use, limited when idle, always stopped in the end."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop

from ollama_nb.errors import Busy, LoadError
from ollama_nb.runner.process import Runner
from ollama_nb.runner.vocabularies import Vocabularies
from ollama_nb.settings import Settings

FAKE = (sys.executable, "-P", str(Path(__file__).parent.parent / "support" / "fake_runner.py"))


def open_vocabularies(**fields: Any) -> Vocabularies:
    return Vocabularies(Settings(), launch=functools.partial(Runner.start, command=FAKE), **fields)


async def pid(vocabularies: Vocabularies, name: str) -> int:
    async with vocabularies.borrow(Path(name)) as runner:
        assert (await runner.tokenize(("ab",)))[0] == (97, 98)
        return runner.pid


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@in_loop
async def test_concurrent_and_later_users_share_one_process() -> None:
    vocabularies = open_vocabularies()
    found = await asyncio.gather(*(pid(vocabularies, "ok") for _ in range(8)))
    assert len({*found, await pid(vocabularies, "ok")}) == 1
    assert vocabularies.pids == [found[0]]
    await vocabularies.close()
    assert not is_there(found[0])
    with pytest.raises(Busy, match="shutting down"):
        await pid(vocabularies, "ok")


@in_loop
async def test_the_oldest_idle_vocabulary_ends_but_not_one_in_use() -> None:
    vocabularies = open_vocabularies(max_idle=1)
    async with AsyncExitStack() as stack:
        used = await stack.enter_async_context(vocabularies.borrow(Path("ok")))
        first, second = await pid(vocabularies, "ok:1"), await pid(vocabularies, "ok:2")
        assert vocabularies.pids == [used.pid, second] and first != second
        assert used.alive
    await vocabularies.close()
    assert not any(map(is_there, (used.pid, first, second)))


@in_loop
async def test_an_idle_vocabulary_ends_by_itself() -> None:
    vocabularies = open_vocabularies(idle_seconds=0)
    first = await pid(vocabularies, "ok")
    assert vocabularies.pids == []
    assert await pid(vocabularies, "ok") != first
    await vocabularies.close()


@in_loop
async def test_a_failed_load_and_a_dead_process_are_forgotten() -> None:
    vocabularies = open_vocabularies()
    for _ in range(2):
        with pytest.raises(LoadError, match="no vocabulary"):
            await pid(vocabularies, "fail:no vocabulary")
    first = await pid(vocabularies, "ok")
    async with vocabularies.borrow(Path("ok")) as runner:
        os.kill(first, signal.SIGKILL)
        await runner.wait()
    assert await pid(vocabularies, "ok") != first
    await vocabularies.close()


@in_loop
async def test_a_user_cancelled_during_the_load_does_not_stop_it_for_others() -> None:
    vocabularies = open_vocabularies()
    leaver = asyncio.ensure_future(pid(vocabularies, "ok"))
    stayer = asyncio.ensure_future(pid(vocabularies, "ok"))
    await asyncio.sleep(0)
    leaver.cancel()
    stayed = await stayer
    assert vocabularies.pids == [stayed]
    hanging = asyncio.ensure_future(pid(vocabularies, "hang"))
    await asyncio.sleep(0)
    await vocabularies.close()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    with pytest.raises(asyncio.CancelledError):
        await leaver
