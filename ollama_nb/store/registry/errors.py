"""Errors of registries by what the caller can do about them, and the policy that retries them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ollama_nb.errors import Cancelled, SourceError

T = TypeVar("T")


class RegistryUnreachable(SourceError):
    """No connection could be opened. Check the network or the name of the registry."""

    code = "registry_unreachable"


class ConnectionLost(SourceError):
    """A connection ended or timed out during a transfer. A retry may succeed."""

    code = "registry_connection_lost"


class RegistryRefused(SourceError):
    """The registry answered with an HTTP error. ``wait``: seconds that it asked to wait (Retry-After), None if not."""

    code = "registry_refused"

    def __init__(self, http_status: int, body: str, wait: float | None = None) -> None:
        super().__init__(f"{http_status}: {body}".rstrip(": "))
        self.http_status = http_status
        self.wait = wait

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later (a temporary status)."""
        return self.http_status in (408, 425, 429) or (self.http_status >= 500 and self.http_status not in (501, 505))


class NotInRegistry(SourceError):
    """The registry has no such model or blob."""

    code = "registry_missing"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds. A wait is ``first · 2^n``, at most ``longest``, less up to a half by chance."""

    connect: float = 15.0
    stall: float = 30.0
    tries: int = 6
    first: float = 1.0
    longest: float = 30.0
    asked: float = 300.0
    """The longest that a server's own Retry-After is obeyed; one that asks for more gets no second request."""

    def wait(self, failure: SourceError, attempt: int, stopped: threading.Event) -> None:
        """Before try ``attempt`` (from 1): wait, or raise ``failure`` when there is no point. Raises Cancelled."""
        asked = failure.wait if isinstance(failure, RegistryRefused) else None
        if attempt >= self.tries or not worth_retrying(failure) or (asked or 0) > self.asked:
            raise failure
        own = min(self.longest, self.first * 2 ** (attempt - 1)) * (1 - random.random() / 2)
        if stopped.wait(max(own, asked or 0)):
            raise Cancelled

    def retry(self, work: Callable[[], T], stopped: threading.Event, *, unreachable: bool = True) -> T:
        """Call ``work`` until it succeeds or fails for good. ``unreachable`` False: an absent host is final."""
        attempt = 0
        while True:
            try:
                return work()
            except (ConnectionLost, RegistryRefused, RegistryUnreachable) as failure:
                if isinstance(failure, RegistryUnreachable) and not unreachable:
                    raise
                attempt += 1
                self.wait(failure, attempt, stopped)


def worth_retrying(failure: SourceError) -> bool:
    return isinstance(failure, ConnectionLost | RegistryUnreachable) or (
        isinstance(failure, RegistryRefused) and failure.passing
    )
