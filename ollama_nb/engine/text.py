"""From token bytes to text: complete characters, stop strings, and detection of endless repetition. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from ollama_nb.reply.markers import MarkerMatcher

MAX_REPEATS = 30  # identical chunks in a row; more end the reply, as in Ollama


class TextStream:
    """Decodes bytes to text. Bytes that may begin a character or a stop string are held back.

    A byte that cannot be part of a character becomes U+FFFD. The first bytes of a character whose last ones never come,
    because the reply ends there, are left out.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        stops = [stop for stop in stops if stop]
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._matcher = MarkerMatcher(stops) if stops else None
        self.stop_sequence = ""
        """The stop string that was found; no text follows it."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return bool(self.stop_sequence)

    def feed(self, piece: bytes) -> str:
        """Add bytes; return the text that is complete now, possibly empty."""
        text = self._decode(piece)
        if self._matcher is None or not text:
            return text
        if self.stopped:
            return ""
        text, found, _ = self._matcher.feed(text)
        self.stop_sequence = found or ""
        return text

    def end(self) -> str:
        """Return the characters that were held back, without an incomplete one."""
        if self._matcher is None or self.stopped:
            return ""
        text, found, _ = self._matcher.end()
        self.stop_sequence = found or ""
        return text


class RepetitionDetector:
    """Detects a reply that repeats one chunk over and over."""

    def __init__(self) -> None:
        self._last = ""
        self._count = 0

    def detect(self, text: str) -> bool:
        """Add the next chunk; return whether it came too often in a row, ignoring whitespace around it."""
        chunk = text.strip()
        if chunk == self._last:
            self._count += 1
        else:
            self._last, self._count = chunk, 0
        return self._count > MAX_REPEATS
