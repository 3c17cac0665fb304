"""A conversation from Python: it remembers what was said, and only answers that came whole change it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar, overload

from ollama_nb.client import question
from ollama_nb.client.answer import Answer, Pieces, answer_of
from ollama_nb.client.client import Client
from ollama_nb.client.question import Image, Overflow
from ollama_nb.client.shape import Shape, bound, value, with_fields
from ollama_nb.errors import ContextOverflow

T = TypeVar("T")
Message = dict[str, Any]


class HistoryDropped(UserWarning):
    """The oldest messages of a conversation did not fit into the context and were left out of a request."""


class Chat:
    """``messages``: what was said, oldest first, as Ollama's API has them; ``system`` stands before them.

    When the history outgrows the context its oldest messages are left out, with a HistoryDropped warning; a message
    that does not fit even alone raises ContextOverflow, unless ``on_overflow="truncate"``.
    """

    def __init__(
        self, client: Client, model: str, *, system: str = "", on_overflow: Overflow = "error", **extras: Any
    ) -> None:
        question.fields_of(extras)
        self._cuts = question.truncates(on_overflow)
        self._client, self._extras = client, extras
        self.model, self.system = model, system
        self.messages: list[Message] = []

    def __repr__(self) -> str:
        return f"Chat({self.model!r}, {len(self.messages)} messages)"

    @overload
    def ask(self, /, text: str, *, returns: None = None, images: Iterable[Image] = (), **extras: Any) -> Answer: ...
    @overload
    def ask(self, /, text: str, *, returns: type[T], images: Iterable[Image] = (), **extras: Any) -> T: ...
    @overload
    def ask(self, /, text: str, *, returns: Any, images: Iterable[Image] = (), **extras: Any) -> Any: ...
    def ask(self, /, text: str, *, returns: Any = None, images: Iterable[Image] = (), **extras: Any) -> Any:
        """Say ``text`` and wait for the answer; keywords are those of ``Ollama.ask``, above the conversation's own."""
        shape, extras = bound(returns, extras)
        said = _said(text, images)
        with question.told():
            reply = self._client.chat(self.model, self._with(said, shape), stream=False, **self._fields(extras))
        answer = self._heard(said, answer_of(self.model, reply))
        return answer if shape is None else value(shape, answer)

    def stream(self, /, text: str, *, images: Iterable[Image] = (), **extras: Any) -> Pieces:
        """The same, piece by piece. The conversation goes on once the last piece has come."""
        said, chat = _said(text, images), self
        with question.told():
            stream = self._client.chat(self.model, self._with(said), stream=True, **self._fields(extras))

        class Spoken(Pieces):
            def ended(self) -> None:
                chat._heard(said, self.answer)

        return Spoken(self.model, stream)

    def twin(self) -> Chat:
        """The same conversation on a connection of its own: what either hears, both remember."""
        other = copy.copy(self)
        other._client = self._client.twin()
        return other

    def hang_up(self) -> None:
        """Cancel what is being asked just now, from any thread; nothing can be asked afterwards."""
        self._client.hang_up()

    def undo(self) -> None:
        """Forget the last question and its answer."""
        del self.messages[-2:]

    def _with(self, said: Message, shape: Shape[Any] | None = None) -> list[Message]:
        told = with_fields(self.system, shape)
        system = [{"role": "system", "content": told}] if told else []
        return [*system, *self.messages, said]

    def _fields(self, extras: dict[str, Any]) -> dict[str, Any]:
        return question.fields_of({**self._extras, **extras})

    def _heard(self, said: Message, answer: Answer) -> Answer:
        """Take question and answer into the conversation."""
        stats = answer.stats
        if stats and stats.messages_dropped:
            warnings.warn(
                f"the {stats.messages_dropped} oldest messages did not fit into the context of {stats.context_length} "
                "tokens and were left out; `num_ctx` widens it",
                HistoryDropped,
                stacklevel=3,
            )
        elif stats and stats.prompt_tokens_dropped and not self._cuts:
            raise ContextOverflow(
                f"the message is {stats.prompt_tokens_dropped} tokens too long for the context of "
                f"{stats.context_length} tokens; `num_ctx` widens it"
            )
        heard: Message = {"role": "assistant", "content": str(answer)}
        if answer.thinking:
            heard["thinking"] = answer.thinking
        self.messages += [said, heard]
        return answer


def _said(text: str, images: Iterable[Image]) -> Message:
    said: Message = {"role": "user", "content": text}
    if shown := question.encoded(images):
        said["images"] = shown
    return said
