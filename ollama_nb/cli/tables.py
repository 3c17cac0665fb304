"""Tables as Ollama prints them: no lines, columns as wide as their widest cell, four blanks after each."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

GAP = "    "


def display_width(text: str) -> int:
    """Columns that a terminal gives to the text: two for East Asian wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(char_width(char) for char in text)


def char_width(char: str) -> int:
    if char.isascii():
        return 1
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def padded(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The header ends with one blank, every row with four: so Ollama's own table does."""
    body = [*rows]
    widths = [max(map(display_width, column)) for column in zip(header, *body, strict=True)]
    head = GAP.join(padded(cell, width) for cell, width in zip(header, widths, strict=True)) + " "
    return "".join(line + "\n" for line in [head, *(aligned(row, widths) for row in body)])


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(padded(cell, width) + GAP for cell, width in zip(cells, widths, strict=True))
