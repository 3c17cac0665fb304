"""The state of one reply while it streams in. Pure: nothing here knows how a reply is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ollama_nb.api.events import Stats
from ollama_nb.client.answer import INTERRUPTED, stats_of

if TYPE_CHECKING:
    from ollama_nb.client.tools import Called

BROKEN = "broken"
"""The reason of a reply that an error ended."""
REPEATED_PART = 80  # characters at the end of the text that are searched for in what precedes them
REPETITIONS = 5  # occurrences of that part that count as a loop
RECENT = 6_000  # characters at the end of the text that are searched


@dataclass(slots=True)
class ToolStep:
    """A tool call, with the thinking and the text that the model wrote before it."""

    thinking: str
    text: str
    called: Called


class ReplyState:
    """The reply to one request, filled chunk by chunk.

    ``reason`` is empty while the reply streams. Afterwards it is the server's ``done_reason``, ``interrupted`` or
    ``broken``. ``steps`` holds the tool calls; ``text`` and ``thinking`` are what the model wrote after the last one.
    """

    def __init__(self, model: str, *, show_thinking: bool = True, verbose: bool = False) -> None:
        self.model, self.show_thinking, self.verbose = model, show_thinking, verbose
        self.text = self.thinking = self.reason = ""
        self.stats: Stats | None = None
        self.notes: list[str] = []
        self.steps: list[ToolStep] = []

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Take one object of a chat or generate stream, or a tool call (once before and once after it runs)."""
        if called := chunk.get("called"):
            self._feed_call(called)
        message = chunk.get("message") or {}
        self.text += message.get("content") or chunk.get("response") or ""
        self.thinking += message.get("thinking") or chunk.get("thinking") or ""
        if chunk.get("done"):
            self.reason = chunk.get("done_reason") or "stop"
            self.stats = stats_of(chunk)
            self.notes += notes_of(chunk)

    def _feed_call(self, called: Called) -> None:
        if called.content is None:
            self.steps.append(ToolStep(self.thinking, self.text, called))
            self.text = self.thinking = ""
        else:
            self.steps[-1].called = called

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


def notes_of(final: Mapping[str, Any]) -> list[str]:
    """What the user should know about a finished reply: dropped messages, a cut-off end, the server's warnings."""
    stats, notes = stats_of(final), [str(warning) for warning in final.get("warnings") or ()]
    window = f" of {stats.context_length} tokens" if stats.context_length else ""
    if stats.messages_dropped:
        notes.append(
            f"The {stats.messages_dropped} oldest messages did not fit into the context{window} and were left out. "
            "`--num-ctx` widens it."
        )
    elif stats.prompt_tokens_dropped:
        notes.append(
            f"{stats.prompt_tokens_dropped} tokens of the prompt did not fit into the context{window} and were left "
            "out. `--num-ctx` widens it."
        )
    if final.get("done_reason") == "length":
        notes.append("The answer was cut off at its length limit. `--num-predict` and `--num-ctx` set it.")
    return notes
