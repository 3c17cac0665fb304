"""What goes wrong between us and a registry, by what can be done about it."""

from __future__ import annotations

from ollama_nb.errors import SourceError


class Unreachable(SourceError):
    """No connection came about."""


class Broken(SourceError):
    """A connection ended or fell silent in the middle: worth another try."""


class Refused(SourceError):
    """An HTTP status that says no. ``wait``: the seconds that the server asked for, if it did."""

    def __init__(self, code: int, body: str, wait: float | None = None) -> None:
        super().__init__(f"{code}: {body}".rstrip(": "))
        self.code = code
        self.wait = wait

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in (408, 425, 429) or (self.code >= 500 and self.code not in (501, 505))


class Missing(SourceError):
    """The registry does not have it."""
