"""Errors between this machine and a registry, by what the caller can do about them."""

from __future__ import annotations

from ollama_nb.errors import SourceError


class Unreachable(SourceError):
    """No connection could be opened. Check the network or the name of the registry."""

    code = "registry_unreachable"


class Broken(SourceError):
    """A connection ended or timed out during a transfer. A retry may succeed."""

    code = "registry_connection_lost"


class Refused(SourceError):
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


class Missing(SourceError):
    """The registry has no such model or blob."""

    code = "registry_missing"
