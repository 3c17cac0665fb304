"""The state of one reply while it streams in. Pure: nothing here knows how a reply is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_nb.api.events import Stats
from ollama_nb.client.chunks import (
    INTERRUPTED,
    DoneChunk,
    PartialReply,
    ReplyChunk,
    parse_chunks,
)
from ollama_nb.client.conversation import describe_omission

BROKEN = "broken"
"""The reason of a reply that an error ended."""
REPEATED_PART = 80  # characters at the end of the text that are searched for in what precedes them
REPETITIONS = 5  # occurrences of that part that count as a loop
RECENT = 6_000  # characters at the end of the text that are searched


class ReplyState(PartialReply):
    """The reply to one request, filled chunk by chunk.

    ``reason`` is empty while the reply streams. Afterwards it is the server's ``done_reason``, ``interrupted`` or
    ``broken``. ``n`` is the number of choices.
    """

    def __init__(self, model: str, *, show_thinking: bool = True, verbose: bool = False, n: int = 1) -> None:
        super().__init__()
        self.model, self.show_thinking, self.verbose, self.n = model, show_thinking, verbose, n
        self.reason = ""
        self.stats: Stats | None = None
        self.notes: list[str] = []

    def feed(self, chunk: ReplyChunk | Mapping[str, Any]) -> None:
        """Take a chunk, or one JSON object of a chat or generate stream."""
        for part in parse_chunks(chunk) if isinstance(chunk, Mapping) else (chunk,):
            super().feed(part)
            if isinstance(part, DoneChunk):
                assert self.done is not None
                self.reason, self.stats = self.done.reason, part.stats
                self.notes += notes_of(self.done)

    @property
    def is_repeating(self) -> bool:
        """Whether the model, while it still writes, appears to be in a loop."""
        written = self.text or self.thinking
        if self.reason or len(written) <= REPEATED_PART * REPETITIONS:
            return False
        return written[-RECENT:].count(written[-REPEATED_PART:]) >= REPETITIONS

    def interrupt(self) -> None:
        """Mark the reply as stopped by the user."""
        self.reason = INTERRUPTED

    def fail(self) -> None:
        """Mark the reply as ended by an error."""
        self.reason = BROKEN


def notes_of(
    done: DoneChunk, *, context: str = "`--num-ctx`", limits: str = "`--num-predict` and `--num-ctx` set it"
) -> list[str]:
    """What the user should know about a finished reply: the server's warnings, dropped messages, a cut-off end.

    ``context`` names the setting of the context length; ``limits`` tells what sets the length limit.
    """
    notes = [*done.warnings]
    if omission := describe_omission(done.stats, context):
        notes.append(f"{omission[0].upper()}{omission[1:]}.")
    if done.reason == "length":
        notes.append(f"The answer was cut off at its length limit. {limits[0].upper()}{limits[1:]}.")
    return notes
