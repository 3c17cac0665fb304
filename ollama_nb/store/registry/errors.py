"""Errors of registries and the policy that retries requests."""

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


class RegistryConnectionLost(SourceError):
    """A connection ended or timed out during a transfer. A retry may succeed."""

    code = "registry_connection_lost"


class RegistryRefused(SourceError):
    """The registry answered with an HTTP error. ``retry_after`` is its Retry-After header in seconds, or None."""

    code = "registry_refused"

    def __init__(self, http_status: int, body: str, retry_after: float | None = None) -> None:
        super().__init__(f"{http_status}: {body}".rstrip(": "))
        self.http_status = http_status
        self.retry_after = retry_after

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later (a temporary status)."""
        return self.http_status in (408, 425, 429) or (self.http_status >= 500 and self.http_status not in (501, 505))


class NotInRegistry(SourceError):
    """The registry has no such model or blob."""

    code = "registry_missing"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to retry a request. All times are in seconds.

    The delay before retry n is ``first_delay * 2**n``, at most ``max_delay``, reduced at random by up to one half.
    """

    connect_timeout: float = 15.0
    read_timeout: float = 30.0
    max_attempts: int = 6
    first_delay: float = 1.0
    max_delay: float = 30.0
    max_retry_after: float = 300.0
    """Upper limit for Retry-After; after a response that asks for more, the request is not retried."""

    def wait(self, failure: SourceError, attempt: int, stopped: threading.Event) -> None:
        """Wait before retry number ``attempt`` (from 1), or raise ``failure`` if a retry is pointless.

        Raises Cancelled when ``stopped`` is set.
        """
        retry_after = failure.retry_after if isinstance(failure, RegistryRefused) else None
        if attempt >= self.max_attempts or not is_retryable(failure) or (retry_after or 0) > self.max_retry_after:
            raise failure
        own = min(self.max_delay, self.first_delay * 2 ** (attempt - 1)) * (1 - random.random() / 2)
        if stopped.wait(max(own, retry_after or 0)):
            raise Cancelled

    def retry(self, work: Callable[[], T], stopped: threading.Event, *, unreachable: bool = True) -> T:
        """Call ``work`` until it succeeds or its error is permanent.

        With ``unreachable=False`` an unreachable host is a permanent error.
        """
        attempt = 0
        while True:
            try:
                return work()
            except (RegistryConnectionLost, RegistryRefused, RegistryUnreachable) as failure:
                if isinstance(failure, RegistryUnreachable) and not unreachable:
                    raise
                attempt += 1
                self.wait(failure, attempt, stopped)


def is_retryable(failure: SourceError) -> bool:
    """Return whether the same request may succeed later."""
    return isinstance(failure, RegistryConnectionLost | RegistryUnreachable) or (
        isinstance(failure, RegistryRefused) and failure.is_temporary
    )
