"""How much is fuzzed: a number of inputs, the same in every run, or as many as fit into a time."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator


def for_seconds(seconds: float) -> Iterator[int]:
    """Yield 1, 2, 3, … for ``seconds`` seconds, at least once."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda count: count == 1 or time.monotonic() < end, itertools.count(1))


def inputs(count: int) -> Iterator[int]:
    """Yield 1, 2, 3, … up to ``count``, or for FUZZ_SECONDS seconds."""
    seconds = os.environ.get("FUZZ_SECONDS")
    return for_seconds(float(seconds)) if seconds else iter(range(1, count + 1))
