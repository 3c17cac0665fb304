"""How often, and in what form, a transfer tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable

TICK = 0.06
"""Seconds between two progress lines."""

Show = Callable[[int], None]
"""Is told how many bytes are there."""


def meter(report: Show, total: int | None = None) -> Show:
    """Passes on what is more than ever before, not too often, and the end in any case."""
    most, told = -1, 0.0

    def show(done: int) -> None:
        nonlocal most, told
        now = time.monotonic()
        if done > most and (done == total or now - told >= TICK):
            most, told = done, now
            report(done)

    return show
