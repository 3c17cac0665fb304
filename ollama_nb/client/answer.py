"""What a model said, as people use it: a string that knows where it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from ollama_nb.api.events import Stats
from ollama_nb.errors import BadRequest

if TYPE_CHECKING:
    from ollama_nb.client.tools import Called

INTERRUPTED = "interrupted"


class Answer(str):
    """The text. Also: the model's name, its thinking, and figures of the request.

    ``reason`` is ``stop``, ``length`` (cut off), ``interrupted`` or another word of the server. ``stats`` is None if
    the answer did not end. ``warnings`` are the server's: what it ignored or left out. ``calls``: the tools that were
    called for it, with their results.
    """

    model: str
    thinking: str
    reason: str
    stats: Stats | None
    warnings: tuple[str, ...]
    calls: tuple[Called, ...]

    def __new__(
        cls,
        text: str,
        *,
        model: str = "",
        thinking: str = "",
        reason: str = "stop",
        stats: Stats | None = None,
        warnings: tuple[str, ...] = (),
        calls: tuple[Called, ...] = (),
    ) -> Answer:
        self = super().__new__(cls, text)
        self.model, self.thinking, self.reason, self.calls = model, thinking, reason, calls
        self.stats, self.warnings = stats, warnings
        return self

    @property
    def text(self) -> str:
        return str(self)

    @property
    def response(self) -> str:
        """The text, under the name that Ollama's own replies give it."""
        return str(self)

    def json(self) -> Any:
        """The text read as JSON; ask for it by a format. Raises BadRequest where it is none."""
        try:
            return json.loads(self)
        except json.JSONDecodeError as error:
            raise BadRequest(f"the answer is no JSON: {error}") from None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


class Chunks(Protocol):
    """A reply that comes object by object; closing it, from any thread, cancels what is left."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...
    def __next__(self) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


class Pieces(Iterator[str]):
    """An answer that comes piece by piece; ``answer`` is what has come so far, as one.

    Use it up, close it, or use it in ``with``: closing cancels the request.
    """

    def __init__(self, model: str, stream: Chunks) -> None:
        self._model, self._stream = model, stream
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[Called] = []
        self._final: Mapping[str, Any] = {}

    def __next__(self) -> str:
        while True:
            try:
                chunk = next(self._stream)
            except StopIteration:
                self.ended()
                raise
            text, thinking = words_of(chunk)
            if called := chunk.get("called"):
                self._take(called)
            if chunk.get("done"):
                self._final = chunk
            self._thinking.append(thinking)
            if text:
                self._text.append(text)
                return text

    def _take(self, called: Called) -> None:
        """What was said before a call is no part of the answer."""
        self._text.clear()
        self._thinking.clear()
        if called.content is not None:
            self._calls.append(called)

    def ended(self) -> None:
        """Called once all pieces have come."""

    def __enter__(self) -> Pieces:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()

    @property
    def answer(self) -> Answer:
        return _answer(self._model, "".join(self._text), "".join(self._thinking), self._final, calls=tuple(self._calls))


def answer_of(model: str, reply: Mapping[str, Any]) -> Answer:
    """A whole reply of chat or generate."""
    return _answer(model, *words_of(reply), reply)


def words_of(reply: Mapping[str, Any]) -> tuple[str, str]:
    """Text and thinking of one object of chat or generate."""
    message = reply.get("message") or reply
    return message.get("content") or message.get("response") or "", message.get("thinking") or ""


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
        drafted_tokens=final.get("drafted_tokens") or 0,
        accepted_tokens=final.get("accepted_tokens") or 0,
    )


def _answer(
    model: str, text: str, thinking: str, final: Mapping[str, Any], *, calls: tuple[Called, ...] = ()
) -> Answer:
    return Answer(
        text,
        model=model,
        thinking=thinking,
        reason=(final.get("done_reason") or "stop") if final else INTERRUPTED,
        stats=stats_of(final) if final else None,
        warnings=tuple(map(str, final.get("warnings") or ())),
        calls=calls,
    )
