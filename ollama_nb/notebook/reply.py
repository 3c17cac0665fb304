"""What a model says, while it says it and afterwards.

`Reply` grows chunk by chunk; `Answer` is the finished one as people use it: a string that knows where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data

from ollama_nb.api.events import Stats
from ollama_nb.client import answer as client_answer
from ollama_nb.client.answer import INTERRUPTED, stats_of
from ollama_nb.notebook import render
from ollama_nb.notebook.calls import Step

if TYPE_CHECKING:
    from ollama_nb.client.tools import Called

BROKEN = "broken"
SAME, ROUNDS, RECENT = 80, 5, 6_000
"""So many characters, so many times among so many of the last ones: a model goes round in a circle."""


class Reply:
    """The reply to one request. ``reason`` is empty until it has ended, then Ollama's word or one of ours above."""

    def __init__(self, model: str, *, show_thinking: bool = True, verbose: bool = False) -> None:
        self.model, self.show_thinking, self.verbose = model, show_thinking, verbose
        self.text = self.thinking = self.reason = ""
        self.stats: Stats | None = None
        self.notes: list[str] = []
        self.steps: list[Step] = []
        """Calls of tools, and what was said before them; ``text`` and ``thinking`` are what was said since."""

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Take one object of a chat or generate stream, or a call before and after it runs."""
        if called := chunk.get("called"):
            self._take(called)
        message = chunk.get("message") or {}
        self.text += message.get("content") or chunk.get("response") or ""
        self.thinking += message.get("thinking") or chunk.get("thinking") or ""
        if chunk.get("done"):
            self.reason = chunk.get("done_reason") or "stop"
            self.stats = stats_of(chunk)
            self.notes += notes_of(chunk)

    def _take(self, called: Called) -> None:
        if called.content is None:
            self.steps.append(Step(self.thinking, self.text, called))
            self.text = self.thinking = ""
        else:
            self.steps[-1].called = called

    @property
    def goes_round(self) -> bool:
        """Whether a model that still writes says the same again and again: only a limit or its reader stops it."""
        said = self.text or self.thinking
        return not self.reason and said[-RECENT:].count(said[-SAME:]) >= ROUNDS if len(said) > SAME * ROUNDS else False

    def interrupt(self) -> None:
        self.reason = INTERRUPTED

    def fail(self) -> None:
        self.reason = BROKEN

    def html(self) -> str:
        return render.reply_html(self)

    def plain(self) -> str:
        return render.reply_plain(self)

    def log(self) -> str:
        return render.reply_log(self)


class Answer(client_answer.Answer):
    """The finished reply of a cell, which has shown it already while it came in."""

    _reply: Reply
    _shown_at: int | None

    def __new__(cls, reply: Reply) -> Answer:
        self = cast(
            Answer,
            super().__new__(
                cls,
                reply.text,
                model=reply.model,
                thinking=reply.thinking,
                reason=reply.reason,
                stats=reply.stats,
                warnings=tuple(reply.notes),
                calls=tuple(step.called for step in reply.steps if step.called.content is not None),
            ),
        )
        self._reply = reply
        self._shown_at = this_cell()
        return self

    @property
    def usage(self) -> dict[str, int | float]:
        """Tokens of the prompt and of the answer, tokens a second, seconds in all; empty for a broken off answer."""
        if (stats := self.stats) is None:
            return {}
        speed = stats.output_tokens / stats.output_seconds if stats.output_seconds > 0 else 0.0
        return {
            "prompt_tokens": stats.prompt_tokens,
            "output_tokens": stats.output_tokens,
            "tokens_per_second": round(speed, 1),
            "seconds": round(stats.total_seconds, 3),
        }

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self._reply,)

    def _ipython_display_(self) -> None:
        # The cell that asked has already shown it while it came in.
        if is_just_shown(self._shown_at):
            if not render.is_notebook(get_ipython()):
                print(render.footer(self._reply))
            return
        publish_display_data({"text/html": self._reply.html(), "text/plain": self._reply.plain()})  # type: ignore[no-untyped-call]


def this_cell() -> int | None:
    """The number of the cell that runs."""
    shell = get_ipython()
    return None if shell is None else shell.execution_count


def is_just_shown(cell: int | None) -> bool:
    """Whether what ``cell`` has shown while it came in would only be shown a second time by it."""
    return cell is not None and cell == this_cell()


def notes_of(final: Mapping[str, Any]) -> list[str]:
    """What a user should know about an answer: dropped history, a cut-off end, the server's warnings."""
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
