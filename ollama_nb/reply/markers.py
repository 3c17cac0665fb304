"""Find marker strings in text that arrives in pieces, holding back only what may be the start of one.

Rule: whatever the chunking, the text out and the marker found are those of a search over the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class Markers:
    """Searches for several strings at once: the one that starts first, at one place the longest."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = sorted({marker for marker in markers if marker}, key=len, reverse=True)
        self._longest = len(self._markers[0]) if self._markers else 1
        self._pattern = re.compile("|".join(map(re.escape, self._markers))) if self._markers else None
        self._starts = frozenset(marker[0] for marker in self._markers)

    def search(self, text: str, at: int = 0, *, final: bool = False) -> tuple[int, str | None]:
        """The place of the first marker at or behind ``at``, and the marker.

        None: there is none yet, and the text up to the place is certain to hold none. ``final``: no more text comes.
        """
        undecided = len(text) if final else self._possible_start(text, at)
        match = self._pattern.search(text, at) if self._pattern else None
        if match is None or match.start() >= undecided:
            return undecided, None
        return match.start(), match[0]

    def _possible_start(self, text: str, at: int) -> int:
        """Index from which the text could be an unfinished marker; its length when nothing could."""
        for place in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[place] in self._starts and self._may_become_marker(text[place:]):
                return place
        return len(text)

    def _may_become_marker(self, tail: str) -> bool:
        return any(len(marker) > len(tail) and marker.startswith(tail) for marker in self._markers)


class MarkerMatcher:
    """Streams text through until a marker is seen."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = Markers(markers)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None, str]:
        """Return text that is safe to give out, the marker found (or None), and what follows that marker."""
        text = self._held + text
        at, marker = self._markers.search(text)
        if marker is not None:
            self._held = ""
            return text[:at], marker, text[at + len(marker) :]
        self._held = text[at:]
        return text[:at], None, ""

    def end(self) -> tuple[str, str | None, str]:
        """No more text comes: decide on what was held back, as ``feed`` would."""
        text, self._held = self._held, ""
        at, marker = self._markers.search(text, final=True)
        return text[:at], marker, text[at + len(marker) :] if marker else ""
