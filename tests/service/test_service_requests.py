"""The table of live requests: cancelling interrupts waits, and nothing else."""

from __future__ import annotations

import asyncio

import pytest
from support.aio import in_loop

from ollama_nb.errors import Cancelled
from ollama_nb.service.requests import GENERATING, QUEUED, Requests


@in_loop
async def test_cancel_interrupts_a_wait() -> None:
    requests = Requests()
    started = asyncio.Event()

    async def work() -> str:
        with requests.enter("a", "m", "chat") as live:
            try:
                with live.interruptible():
                    started.set()
                    await asyncio.Event().wait()
            except Cancelled:
                await asyncio.sleep(0)  # the task itself is not cancelled: it can await again
                return "ended well"
        return "never"

    task = asyncio.ensure_future(work())
    await started.wait()
    assert requests.cancel("a")
    assert await task == "ended well"
    assert not requests.cancel("a")


@in_loop
async def test_cancel_before_a_wait_takes_effect_at_it() -> None:
    requests = Requests()
    with requests.enter("a", "m", "chat") as live:
        assert requests.cancel("a")
        await asyncio.sleep(0)
        with pytest.raises(Cancelled), live.interruptible():
            raise AssertionError("not reached")


@in_loop
async def test_a_cancelled_task_stays_cancelled() -> None:
    requests = Requests()
    started = asyncio.Event()

    async def work() -> None:
        with requests.enter("a", "m", "chat") as live, live.interruptible():
            started.set()
            await asyncio.Event().wait()

    for also_cancel_the_request in (False, True):
        task = asyncio.ensure_future(work())
        await started.wait()
        task.cancel()
        if also_cancel_the_request:
            requests.cancel("a")
        with pytest.raises(asyncio.CancelledError):
            await task
        started.clear()
    assert requests.queue() == []


@in_loop
async def test_queue_shows_places_and_counts_but_no_text() -> None:
    requests = Requests()
    with requests.enter("a", "m", "chat") as first, requests.enter("b", "m", "chat"), requests.enter("", "m", "embed"):
        first.count_output()
        first.count_output(1, 3, 2)
        first.count_output(1, 1)
        first.prompt_tokens = 5
        a, b, c = requests.queue()
    assert (a.id, a.state, a.position, a.output_tokens, a.prompt_tokens) == ("a", GENERATING, 0, 3, 5)
    assert (a.drafted_tokens, a.accepted_tokens, b.drafted_tokens) == (4, 2, 0)
    assert (b.state, b.position, c.position) == (QUEUED, 1, 2)
    assert len(c.id) == 16
    assert b.tokens_per_second == 0
