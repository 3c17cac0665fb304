"""Blocking work in a thread, its progress as an async stream.

Rule: the thread never outlives its stream. Closing the stream sets ``cancelled`` and waits for the thread to notice.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable

from ollama_nb.api.events import Progress
from ollama_nb.errors import Cancelled
from ollama_nb.service.requests import LiveRequest

Report = Callable[[Progress], None]
Work = Callable[[Report, threading.Event], None]


async def in_thread(work: Work, live: LiveRequest) -> AsyncGenerator[Progress, None]:
    """Yield what ``work`` reports; raise what it raises. A cancelled request ends with the line ``cancelled``."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[Progress | None] = asyncio.Queue()
    cancelled = threading.Event()

    def report(progress: Progress) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, progress)

    def body() -> None:
        try:
            work(report, cancelled)
        finally:
            loop.call_soon_threadsafe(lines.put_nowait, None)

    thread = asyncio.ensure_future(asyncio.to_thread(body))
    try:
        while True:
            with live.interruptible():
                line = await lines.get()
            if line is None:
                break
            yield line
    except Cancelled:
        yield Progress("cancelled")
        return
    finally:
        cancelled.set()
        await _ended(thread)
    await thread


async def _ended(thread: asyncio.Future[None]) -> None:
    """Wait for the thread, whatever happens to the waiter; its error is the stream's business, not ours."""
    interrupted = False
    while not thread.done():
        try:
            await asyncio.wait([thread])
        except asyncio.CancelledError:
            interrupted = True
    if not thread.cancelled():
        thread.exception()
    if interrupted:
        raise asyncio.CancelledError
