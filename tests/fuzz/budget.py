"""How much is fuzzed: so many inputs, the same in every run of the tests, or as many as a time allows."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator


def for_seconds(seconds: float) -> Iterator[int]:
    """1, 2, 3, … for that long, at least once."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda count: count == 1 or time.monotonic() < end, itertools.count(1))


def inputs(count: int) -> Iterator[int]:
    """1, 2, 3, … up to ``count``, or for as long as FUZZ_SECONDS says."""
    seconds = os.environ.get("FUZZ_SECONDS")
    return for_seconds(float(seconds)) if seconds else iter(range(1, count + 1))
