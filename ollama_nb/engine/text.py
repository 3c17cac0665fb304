"""From token bytes to text: whole characters only, nothing of a stop string, and an end to endless repetition."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from ollama_nb.errors import BadRequest
from ollama_nb.reply.markers import MarkerMatcher

MAX_STOPS = 256
MAX_STOP_LENGTH = 8192
MAX_REPEATS = 30
"""More identical chunks in a row than this end the reply, as in Ollama."""


class TextStream:
    """Bytes in, text out. What may be the start of a stop string, or of a character, is held back."""

    def __init__(self, stops: Iterable[str] = ()) -> None:
        stops = [stop for stop in stops if stop]
        if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
            raise BadRequest(f"at most {MAX_STOPS} stop strings of {MAX_STOP_LENGTH} characters each can be used")
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._matcher = MarkerMatcher(stops) if stops else None
        self.stopped = False
        """A stop string was seen; no more text comes."""

    def feed(self, piece: bytes) -> str:
        """Text that is certain now; it may be empty."""
        text = self._decode(piece)
        if self._matcher is None or not text:
            return text
        if self.stopped:
            return ""
        text, found, _ = self._matcher.feed(text)
        self.stopped = found is not None
        return text

    def end(self) -> str:
        """What was held back, now that nothing follows; an unfinished character becomes U+FFFD."""
        text = self._decode(b"", True)
        if self._matcher is None:
            return text
        if self.stopped:
            return ""
        text, found, _ = self._matcher.feed(text)
        if found is None:
            more, found, _ = self._matcher.end()
            text += more
        self.stopped = found is not None
        return text


class RepeatGuard:
    """Notices a reply that only repeats one chunk."""

    def __init__(self) -> None:
        self._last = ""
        self._count = 0

    def stuck(self, text: str) -> bool:
        """Take the next chunk; True when it came too often in a row (blanks around it do not count)."""
        chunk = text.strip()
        if chunk == self._last:
            self._count += 1
        else:
            self._last, self._count = chunk, 0
        return self._count > MAX_REPEATS
