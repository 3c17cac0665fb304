"""Blocking work in a thread of its own, its progress as an async stream.

Rule: the thread never outlives its stream. Closing the stream sets ``cancelled`` and waits for the thread to notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable

from ollama_nb.api.events import Progress, Report
from ollama_nb.errors import Cancelled
from ollama_nb.service.requests import LOADING, LiveRequest

Work = Callable[[Report, threading.Event], None]


async def in_thread(work: Work, live: LiveRequest) -> AsyncGenerator[Progress, None]:
    """Yield what ``work`` reports; raise what it raises. A cancelled request ends with the line ``cancelled``."""
    lines: asyncio.Queue[Progress | None] = asyncio.Queue()
    cancelled = threading.Event()
    live.state = LOADING
    ended = _start(work, lines, cancelled)
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
        await _wait(ended)
    ended.result()


def _start(work: Work, lines: asyncio.Queue[Progress | None], cancelled: threading.Event) -> asyncio.Future[None]:
    """Begin ``work``; the future has its outcome. Not in the loop's own pool: a few long pulls would fill that."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def call(function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody listens any more.
            loop.call_soon_threadsafe(function, *arguments)

    def body() -> None:
        try:
            work(lambda line: call(lines.put_nowait, line), cancelled)
        except BaseException as error:
            call(ended.set_exception, error)
        else:
            call(ended.set_result, None)
        call(lines.put_nowait, None)

    threading.Thread(target=body, name="ollama-nb-transfer", daemon=True).start()
    return ended


async def _wait(ended: asyncio.Future[None]) -> None:
    """Wait for the thread, whatever happens to the waiter; its error is the stream's business, not ours."""
    interrupted = False
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            interrupted = True
    ended.exception()
    if interrupted:
        raise asyncio.CancelledError
