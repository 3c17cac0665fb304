"""What the terminal is, and the escape sequences that we send to it."""

from __future__ import annotations

import os
from typing import TextIO

GREY, BOLD, RESET = "\x1b[38;5;245m", "\x1b[1m", "\x1b[0m"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
SYNC_ON, SYNC_OFF = "\x1b[?2026h", "\x1b[?2026l"
LINE_START, CLEAR_TO_END, CLEAR_LINE, UP = "\x1b[1G", "\x1b[K", "\x1b[2K", "\x1b[A"


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def size_of(stream: TextIO) -> tuple[int, int]:
    """Columns and lines; 80 × 24 where they cannot be known."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return columns or 80, lines or 24
