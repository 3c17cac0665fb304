"""Find marker strings in text that arrives in pieces, holding back only what may be the start of one.

Rule: whatever the chunking, the text out and the marker found are those of a search over the whole text.
"""

from __future__ import annotations

from collections.abc import Iterable


class MarkerMatcher:
    """Streams text through until one of ``markers`` is seen: the one that starts first, at one place the longest."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = sorted({marker for marker in markers if marker}, key=len, reverse=True)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None, str]:
        """Return text that is safe to give out, the marker found (or None), and what follows that marker."""
        text = self._held + text
        undecided = self._possible_start(text)
        at, marker = self._first(text)
        if marker is not None and at < undecided:
            self._held = ""
            return text[:at], marker, text[at + len(marker) :]
        self._held = text[undecided:]
        return text[:undecided], None, ""

    def end(self) -> tuple[str, str | None, str]:
        """No more text comes: decide on what was held back, as ``feed`` would."""
        text, self._held = self._held, ""
        at, marker = self._first(text)
        if marker is None:
            return text, None, ""
        return text[:at], marker, text[at + len(marker) :]

    def _first(self, text: str) -> tuple[int, str | None]:
        found = [(at, -len(marker), marker) for marker in self._markers if (at := text.find(marker)) >= 0]
        return (min(found)[0], min(found)[2]) if found else (len(text), None)

    def _possible_start(self, text: str) -> int:
        """Index from which the text could be an unfinished marker; its length when nothing could."""
        longest = len(self._markers[0]) if self._markers else 1
        for at in range(max(0, len(text) - longest + 1), len(text)):
            tail = text[at:]
            if any(len(marker) > len(tail) and marker.startswith(tail) for marker in self._markers):
                return at
        return len(text)
