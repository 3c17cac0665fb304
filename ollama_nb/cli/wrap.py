"""Word wrap for text that comes in pieces: a word that does not fit any more is taken back and written again below."""

from __future__ import annotations

from ollama_nb.cli.tables import char_width, display_width
from ollama_nb.cli.terminal import CLEAR_TO_END

MARGIN, LEAST_WIDTH = 5, 10


class Wrapper:
    """``feed`` gives back what to write. Terminals narrower than 10 columns are left alone."""

    def __init__(self, columns: int) -> None:
        self._limit = columns - MARGIN if columns >= LEAST_WIDTH else 0
        self._used = 0
        self._word = ""

    def feed(self, text: str) -> str:
        return "".join(map(self._char, text)) if self._limit else text

    def reset(self) -> None:
        """A new line was begun by somebody else."""
        self._used, self._word = 0, ""

    def _char(self, char: str) -> str:
        if char in "\n\r":
            self.reset()
            return char
        broken = self._broken() if self._used + 1 > self._limit else ""
        self._used += char_width(char)
        # Between East Asian characters a line may end anywhere.
        self._word = "" if char in " \t" or char_width(char) == 2 else self._word + char
        return broken + char

    def _broken(self) -> str:
        """Go to a new line, with the word that was begun unless it fills a whole line itself."""
        width = display_width(self._word)
        if width >= self._limit:
            self.reset()
            return "\n"
        self._used = width
        back = f"\x1b[{width}D" if width else ""
        return f"{back}{CLEAR_TO_END}\n{self._word}"
