"""Markdown that grows at its end, drawn in time proportional to its length.

Whole paragraphs that nothing can change any more are drawn once; only the last part is drawn again. What is drawn so
may differ a little from the whole text drawn at once (a list with gaps), so the end is drawn from the whole.
"""

from __future__ import annotations

import re

from ollama_nb.notebook.render import markdown_html

_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_GOES_ON = re.compile(r"\s|[-*+]\s|\d+[.)]\s|[|>]")
"""How a line begins that may belong to the block before a blank line."""


class Growing:
    """``drawn`` counts the characters that are settled."""

    def __init__(self) -> None:
        self.drawn = 0

    def feed(self, text: str) -> tuple[str, str]:
        """The whole text so far → HTML of what is newly settled, and HTML of the rest, which replaces the last one."""
        end = self.drawn + _settled(text[self.drawn :])
        settled, self.drawn = text[self.drawn : end], end
        return markdown_html(settled) if settled else "", markdown_html(text[end:])


def _settled(text: str) -> int:
    """Up to where blocks have ended: before the last plain line that follows a blank one outside of any fence."""
    at = found = 0
    fenced, blank = False, False
    for line in text.splitlines(keepends=True):
        if blank and not fenced and line.endswith("\n") and line.strip() and not _GOES_ON.match(line):
            found = at
        if _FENCE.match(line):
            fenced = not fenced
        blank = not line.strip()
        at += len(line)
    return found
