"""What a model says, while it says it and afterwards.

`Reply` grows chunk by chunk; `Answer` is the finished one as people use it: a string that knows where it came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data

from ollama_nb.api.events import Stats
from ollama_nb.errors import BadRequest
from ollama_nb.notebook import render

INTERRUPTED = "interrupted"
BROKEN = "broken"


class Reply:
    """The reply to one request. ``reason`` is empty until it has ended, then Ollama's word or one of ours above."""

    def __init__(self, model: str, *, show_thinking: bool = True) -> None:
        self.model, self.show_thinking = model, show_thinking
        self.text = self.thinking = self.reason = ""
        self.stats: Stats | None = None
        self.notes: list[str] = []

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Take one object of a chat or generate stream."""
        message = chunk.get("message") or {}
        self.text += message.get("content") or chunk.get("response") or ""
        self.thinking += message.get("thinking") or chunk.get("thinking") or ""
        if chunk.get("done"):
            self.reason = chunk.get("done_reason") or "stop"
            self.stats = stats_of(chunk)
            self.notes += notes_of(chunk)

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


class Answer(str):
    """What the model said, as text. Also: the model's name, its thinking, and figures of the request.

    ``reason`` is ``stop``, ``length`` (cut off) or ``interrupted``. ``stats`` is None if the reply did not end.
    """

    _reply: Reply
    _shown_at: int | None

    def __new__(cls, reply: Reply) -> Answer:
        self = super().__new__(cls, reply.text)
        self._reply = reply
        self._shown_at = _execution_count()
        return self

    @property
    def text(self) -> str:
        return str(self)

    @property
    def response(self) -> str:
        """The text, under the name that Ollama's own replies give it."""
        return str(self)

    @property
    def model(self) -> str:
        return self._reply.model

    @property
    def thinking(self) -> str:
        return self._reply.thinking

    @property
    def reason(self) -> str:
        return self._reply.reason

    @property
    def stats(self) -> Stats | None:
        return self._reply.stats

    def json(self) -> Any:
        """The text read as JSON; ask for it with ``--format json`` or a schema. Raises BadRequest where it is none."""
        try:
            return json.loads(self)
        except json.JSONDecodeError as error:
            raise BadRequest(f"the answer is no JSON: {error}") from None

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self._reply,)

    def _ipython_display_(self) -> None:
        # The cell that asked has already shown it while it came in.
        if self._shown_at is not None and self._shown_at == _execution_count():
            if not render.is_notebook(get_ipython()):
                print(render.footer(self._reply))
            return
        publish_display_data({"text/html": self._reply.html(), "text/plain": self._reply.plain()})  # type: ignore[no-untyped-call]


def _execution_count() -> int | None:
    shell = get_ipython()
    return None if shell is None else shell.execution_count


def stats_of(final: Mapping[str, Any]) -> Stats:
    """Figures of a final object; its times are nanoseconds, ours seconds."""

    def seconds(key: str) -> float:
        return (final.get(key) or 0) / 1e9

    truncated = final.get("truncated") or {}
    return Stats(
        prompt_tokens=final.get("prompt_eval_count") or 0,
        cached_tokens=final.get("cached_tokens") or 0,
        prompt_seconds=seconds("prompt_eval_duration"),
        output_tokens=final.get("eval_count") or 0,
        output_seconds=seconds("eval_duration"),
        load_seconds=seconds("load_duration"),
        total_seconds=seconds("total_duration"),
        context_length=final.get("context_length") or 0,
        messages_dropped=truncated.get("messages_dropped") or 0,
        prompt_tokens_dropped=truncated.get("prompt_tokens_dropped") or 0,
    )


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
