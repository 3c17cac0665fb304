"""Async tests without a plugin: ``@in_loop`` runs a test in a new event loop and fails it if tasks remain."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    async def checked(*args: Any, **kwargs: Any) -> None:
        await test(*args, **kwargs)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left over: {left}"

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(checked(*args, **kwargs))

    return run
