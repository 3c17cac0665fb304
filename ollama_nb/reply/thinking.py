"""Split a reply into thinking and answer by the model's two tags.

Rule: thinking is only what stands at the very start; the tags and the white space behind each of them are dropped,
every other character comes out, whatever the chunking.
"""

from __future__ import annotations

from ollama_nb.reply.markers import MarkerMatcher


class ThinkingSplitter:
    """``inside``: the prompt ended with the opening tag, so that the reply starts with thinking."""

    def __init__(self, opening: str, closing: str, *, inside: bool = False) -> None:
        self._opening = opening
        self._closing = MarkerMatcher([closing])
        self._space: list[str] = []  # at the very start
        self._tag = ""  # then perhaps a part of the opening tag
        self._state = _THINKING if inside else _START
        self._eats_space = inside

    def feed(self, text: str) -> tuple[str, str]:
        """Return the thinking and the content that are now certain."""
        if self._state is _START:
            text = self._begin(text)
            if self._state is _START:
                return "", ""
        if self._state is _CONTENT:
            return "", self._uneaten(text)
        thinking, marker, rest = self._closing.feed(self._uneaten(text))
        if marker is None:
            return thinking, ""
        self._state, self._eats_space = _CONTENT, True
        return thinking, self._uneaten(rest)

    def end(self) -> tuple[str, str]:
        """No more text comes: what was held back is thinking inside thinking, content before it."""
        if self._state is _START:
            self._state = _CONTENT
            return "", "".join(self._space) + self._tag
        return self._closing.end()[0], ""

    def _begin(self, text: str) -> str:
        """Look for the opening tag. Once it is there or cannot come, return the text behind it."""
        if not self._tag:
            trimmed = text.lstrip()
            self._space.append(text[: len(text) - len(trimmed)])
            text = trimmed
        text = self._tag + text
        if text.startswith(self._opening):
            self._state, self._eats_space = _THINKING, True
            return text[len(self._opening) :]
        if self._opening.startswith(text):
            self._tag = text
            return ""
        self._state = _CONTENT
        return "".join(self._space) + text

    def _uneaten(self, text: str) -> str:
        if self._eats_space:
            text = text.lstrip()
            self._eats_space = not text
        return text


_START, _THINKING, _CONTENT = "start", "thinking", "content"
