"""The answer of a model as users receive it: a string with the circumstances of its making."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from ollama_nb.api.events import Stats
from ollama_nb.client.chunks import (
    INTERRUPTED,
    ChunkStream,
    Invocation,
    PartialReply,
    TextChunk,
    collect,
    parse_chunks,
)
from ollama_nb.errors import BadRequest


class Answer(str):
    """The text of the answer, with the model's name, its thinking and the figures of the request.

    ``reason`` is ``stop``, ``length`` (cut off), ``interrupted`` or another word of the server. ``stats`` is None for
    an interrupted answer. ``warnings`` are the server's: what it ignored or left out. ``calls`` are the functions that
    ran for the answer, with their results. ``stop_sequence`` is the text of ``stop`` that ended it, if one did.

    With ``n`` in the question there are several answers: this one is the first of its ``choices``, and the figures are
    those of all of them together.
    """

    model: str
    thinking: str
    reason: str
    stats: Stats | None
    warnings: tuple[str, ...]
    calls: tuple[Invocation, ...]
    stop_sequence: str
    _others: tuple[Answer, ...]

    def __new__(
        cls,
        text: str,
        *,
        model: str = "",
        thinking: str = "",
        reason: str = "stop",
        stats: Stats | None = None,
        warnings: tuple[str, ...] = (),
        calls: tuple[Invocation, ...] = (),
        stop_sequence: str = "",
        others: tuple[Answer, ...] = (),
    ) -> Answer:
        self = super().__new__(cls, text)
        self.model, self.thinking, self.reason, self.calls = model, thinking, reason, calls
        self.stats, self.warnings, self.stop_sequence, self._others = stats, warnings, stop_sequence, others
        return self

    @property
    def choices(self) -> tuple[Answer, ...]:
        """All answers to the question, this one first."""
        return self, *self._others

    @property
    def text(self) -> str:
        """The text as a plain ``str``."""
        return str(self)

    @property
    def response(self) -> str:
        """The text, under the name that Ollama's own replies give it."""
        return str(self)

    def json(self) -> Any:
        """Parse the text as JSON; ask for JSON with a format. Raises BadRequest when it is not valid."""
        try:
            return json.loads(self)
        except json.JSONDecodeError as error:
            raise BadRequest(f"the answer is not valid JSON: {error}") from None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


class AnswerStream(Iterator[str]):
    """The pieces of an answer's text; ``answer`` is what has arrived so far.

    Exhaust it, close it, or use it in ``with``: closing cancels the request. ``on_complete`` receives the answer when
    the last piece has arrived.
    """

    def __init__(
        self, model: str, stream: ChunkStream, on_complete: Callable[[Answer], None] = lambda answer: None
    ) -> None:
        self._model, self._stream, self._on_complete = model, stream, on_complete
        self._reply = PartialReply()
        self._complete = False

    def __next__(self) -> str:
        for chunk in self._stream:
            self._reply.feed(chunk)
            if isinstance(chunk, TextChunk):
                return chunk.text
        if not self._complete:
            self._complete = True
            self._on_complete(self.answer)
        raise StopIteration

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the request, from any thread."""
        self._stream.close()

    @property
    def answer(self) -> Answer:
        return make_answer(self._model, self._reply)


def make_answer(model: str, reply: PartialReply) -> Answer:
    """The answer that a reply, complete or not, holds."""
    done = reply.done
    return Answer(
        reply.text,
        model=model,
        thinking=reply.thinking,
        reason=done.reason if done else INTERRUPTED,
        stats=done.stats if done else None,
        warnings=done.warnings if done else (),
        calls=reply.invocations,
        stop_sequence=reply.stop_sequence,
        others=other_answers(model, reply),
    )


def other_answers(model: str, reply: PartialReply) -> tuple[Answer, ...]:
    """The further choices of a reply, in the order of their indices."""
    return tuple(
        Answer(
            choice.text,
            model=model,
            thinking=choice.thinking,
            reason=choice.reason or INTERRUPTED,
            stop_sequence=choice.stop_sequence,
        )
        for _, choice in sorted(reply.others.items())
    )


def parse_answer(model: str, found: Mapping[str, Any]) -> Answer:
    """The answer in a whole reply of chat or generate. A reply that is not streamed is always complete."""
    return make_answer(model, collect(parse_chunks({**found, "done": True})))
