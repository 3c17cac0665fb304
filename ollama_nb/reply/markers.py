"""Find marker strings in text that arrives in pieces, and hold back only text that may be the beginning of a marker.

The result does not depend on how the text is split: it is the result of a search over the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class Markers:
    """Searches for several strings at once. The leftmost match wins; of several at one position, the longest."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = sorted({marker for marker in markers if marker}, key=len, reverse=True)
        self._longest = len(self._markers[0]) if self._markers else 1
        self._pattern = re.compile("|".join(map(re.escape, self._markers))) if self._markers else None
        self._starts = frozenset(marker[0] for marker in self._markers)

    def search(self, text: str, at: int = 0, *, final: bool = False) -> tuple[int, str | None]:
        """Return the position of the first marker at or after ``at``, and the marker.

        If no marker was found, it is None, and the text before the returned position certainly contains no marker.
        ``final``: no more text follows.
        """
        undecided = len(text) if final else self._possible_start(text, at)
        match = self._pattern.search(text, at) if self._pattern else None
        if match is None or match.start() >= undecided:
            return undecided, None
        return match.start(), match[0]

    def _possible_start(self, text: str, at: int) -> int:
        """Return the index from which the text may be an incomplete marker, or the text's length."""
        for place in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[place] in self._starts and self._may_become_marker(text[place:]):
                return place
        return len(text)

    def _may_become_marker(self, tail: str) -> bool:
        return any(len(marker) > len(tail) and marker.startswith(tail) for marker in self._markers)


class MarkerMatcher:
    """Passes text through up to the first marker.

    Each character takes one step per marker, whatever the markers are: clients choose some of them, as stop strings.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = frozenset(marker for marker in markers if marker)
        self._starts = frozenset(marker[0] for marker in self._markers)
        self._progress = [_Progress(marker) for marker in self._markers]
        self._found: tuple[int, str] | None = None
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None, str]:
        """Return the text that certainly precedes any marker, the marker found (or None), and the text after it."""
        if not self._held and self._starts.isdisjoint(text):
            return text, None, ""
        seen = len(self._held)
        text = self._held + text
        for at in range(seen, len(text)):
            for progress in self._progress:
                if progress.step(text[at]):
                    self._note(at + 1 - len(progress.marker), progress.marker)
            if self._found is not None and not self._may_improve(at + 1):
                return self._split(text)
        undecided = min((len(text) - progress.length for progress in self._progress), default=len(text))
        if self._found is not None:
            undecided = min(undecided, self._found[0])
            self._found = (self._found[0] - undecided, self._found[1])
        self._held = text[undecided:]
        return text[:undecided], None, ""

    def end(self) -> tuple[str, str | None, str]:
        """Decide on the text that is held back, as no more follows. Returns what ``feed`` returns."""
        return self._split(self._held)

    def _note(self, start: int, marker: str) -> None:
        if self._found is None or (start, -len(marker)) < (self._found[0], -len(self._found[1])):
            self._found = (start, marker)

    def _may_improve(self, read: int) -> bool:
        """Whether a marker that starts earlier than the one found, or there and is longer, may still be completed."""
        assert self._found is not None
        start, marker = self._found
        return any(
            read - progress.length < start or (read - progress.length == start and len(progress.marker) > len(marker))
            for progress in self._progress
            if progress.length
        )

    def _split(self, text: str) -> tuple[str, str | None, str]:
        found = self._found
        self._held, self._found = "", None
        self._progress = [_Progress(marker) for marker in self._markers]
        if found is None:
            return text, None, ""
        start, marker = found
        return text[:start], marker, text[start + len(marker) :]


class _Progress:
    """The length of the longest prefix of one marker that the text ends with (Knuth, Morris and Pratt).

    The failure table is built as far as it is needed.
    """

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self.length = 0
        self._borders: list[int] = []

    def step(self, char: str) -> bool:
        """Consume one character. Return True if it completes the marker."""
        marker, length = self.marker, self.length
        while length and marker[length] != char:
            length = self._borders[length - 1]
        length += marker[length] == char
        if length > len(self._borders):
            self._add_border()
        complete = length == len(marker)
        self.length = self._borders[-1] if complete else length
        return complete

    def _add_border(self) -> None:
        marker, at = self.marker, len(self._borders)
        border = self._borders[-1] if at else 0
        while border and marker[border] != marker[at]:
            border = self._borders[border - 1]
        self._borders.append(border + 1 if at and marker[border] == marker[at] else 0)
