"""The terminal: its size, the escape sequences that we use, and word wrap for streamed text."""

from __future__ import annotations

import os
from typing import TextIO

from ollama_nb.verbs.present import char_width, display_width

GREY, BOLD, RESET = "\x1b[38;5;245m", "\x1b[1m", "\x1b[0m"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
SYNC_ON, SYNC_OFF = "\x1b[?2026h", "\x1b[?2026l"
LINE_START, CLEAR_TO_END, CLEAR_LINE, UP = "\x1b[1G", "\x1b[K", "\x1b[2K", "\x1b[A"

WRAP_MARGIN = 5  # columns at the right that word wrap leaves empty
MIN_WRAP_COLUMNS = 10  # narrower terminals are not wrapped
DEFAULT_SIZE = (80, 24)  # columns, lines


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is open and a terminal."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def size_of(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of the terminal, DEFAULT_SIZE when the stream is not one."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return DEFAULT_SIZE
    return columns or DEFAULT_SIZE[0], lines or DEFAULT_SIZE[1]


class WordWrapper:
    """Word wrap for streamed text: a word that reaches the margin is erased and written on the next line."""

    def __init__(self, columns: int) -> None:
        self._limit = columns - WRAP_MARGIN if columns >= MIN_WRAP_COLUMNS else 0
        self._used = 0
        self._word = ""

    def feed(self, text: str) -> str:
        """What to write for the next piece of text."""
        return "".join(map(self._char, text)) if self._limit else text

    def reset(self) -> None:
        """Continue at the start of a line, after other output."""
        self._used, self._word = 0, ""

    def _char(self, char: str) -> str:
        if char in "\n\r":
            self.reset()
            return char
        broken = self._broken() if self._used + 1 > self._limit else ""
        self._used += char_width(char)
        # A line may break between any two East Asian characters.
        self._word = "" if char in " \t" or char_width(char) == 2 else self._word + char
        return broken + char

    def _broken(self) -> str:
        """Begin a new line and move the unfinished word there, unless it fills a whole line."""
        width = display_width(self._word)
        if width >= self._limit:
            self.reset()
            return "\n"
        self._used = width
        back = f"\x1b[{width}D" if width else ""
        return f"{back}{CLEAR_TO_END}\n{self._word}"
