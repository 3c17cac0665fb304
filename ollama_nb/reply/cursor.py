"""A place in a text that is read once from left to right."""

from __future__ import annotations

import re

_BETWEEN = re.compile(r"[\s,]*")
_BLANKS = re.compile(r"\s*")


class Cursor:
    """What readers of hand-written notations have in common: ``_at`` is the place in ``_text`` that is read next."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def _skip(self) -> bool:
        """Go past blanks and commas; False at the end."""
        self._match(_BETWEEN)
        return self._at < len(self._text)

    def _blanks(self) -> None:
        self._match(_BLANKS)

    def _take(self, mark: str) -> bool:
        """Go past ``mark`` if it stands here."""
        if self._text.startswith(mark, self._at):
            self._at += len(mark)
            return True
        return False

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Go past what matches here."""
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return match
