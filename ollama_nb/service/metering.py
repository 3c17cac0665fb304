"""What is counted of the models' work: a meter that a host hands in, told of every reply from outside of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from ollama_nb.api.events import Delta, Done, Event, Stats, ToolCalls


class Meter(Protocol):
    """Times are seconds."""

    def first_token(self, model: str, seconds: float) -> None: ...
    def done(self, model: str, reason: str, stats: Stats) -> None: ...
    def given_up(self, phase: str) -> None: ...


class NoMeter:
    """Counts nothing."""

    def first_token(self, model: str, seconds: float) -> None:
        pass

    def done(self, model: str, reason: str, stats: Stats) -> None:
        pass

    def given_up(self, phase: str) -> None:
        pass


async def metered(source: AsyncGenerator[Event, None], meter: Meter, model: str) -> AsyncGenerator[Event, None]:
    """The same events; a reply that its reader leaves is counted as given up, ``waiting`` or ``generating``."""
    began, first, ended = time.perf_counter(), False, False
    try:
        async with aclosing(source) as events:
            async for event in events:
                if not first and isinstance(event, Delta | ToolCalls):
                    first = True
                    meter.first_token(model, time.perf_counter() - began)
                elif isinstance(event, Done):
                    ended = True
                    if event.stats is not None:
                        meter.done(model, event.reason, event.stats)
                yield event
        ended = True
    except Exception:
        ended = True  # an error is no leaving
        raise
    finally:
        if not ended:
            meter.given_up("generating" if first else "waiting")
