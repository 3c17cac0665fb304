"""A conversation from Python: it remembers what was said, and only answers that came whole change it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar, overload

from ollama_nb.client import question
from ollama_nb.client.answer import Answer, Chunks, Pieces, answer_of
from ollama_nb.client.client import Client
from ollama_nb.client.question import Image, Overflow
from ollama_nb.client.shape import Shape, bound, value, with_fields
from ollama_nb.client.tools import Functions, Rounds, Tools
from ollama_nb.errors import BadRequest, ContextOverflow

T = TypeVar("T")
Message = dict[str, Any]


class HistoryDropped(UserWarning):
    """The oldest messages of a conversation did not fit into the context and were left out of a request."""


class Chat:
    """``messages``: what was said, oldest first, as Ollama's API has them; ``system`` stands before them.

    When the history outgrows the context its oldest messages are left out, with a HistoryDropped warning; a message
    that does not fit even alone raises ContextOverflow, unless ``on_overflow="truncate"``.

    ``tools`` are Python functions that the model may call: their docstrings and type hints describe them. They run
    here, at once, with the model's arguments; results and exceptions go back to the model until it answers in words.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        *,
        system: str = "",
        tools: Functions = (),
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> None:
        question.fields_of(extras)
        self._cuts = question.truncates(on_overflow)
        self._client, self._extras, self._tools = client, extras, Tools(tools)
        self.model, self.system = model, system
        self.messages: list[Message] = []

    def __repr__(self) -> str:
        return f"Chat({self.model!r}, {len(self.messages)} messages)"

    @overload
    def ask(
        self,
        /,
        text: str,
        *,
        returns: None = None,
        images: Iterable[Image] = (),
        tools: Functions | None = None,
        **extras: Any,
    ) -> Answer: ...
    @overload
    def ask(self, /, text: str, *, returns: type[T], images: Iterable[Image] = (), **extras: Any) -> T: ...
    @overload
    def ask(self, /, text: str, *, returns: Any, images: Iterable[Image] = (), **extras: Any) -> Any: ...
    def ask(
        self,
        /,
        text: str,
        *,
        returns: Any = None,
        images: Iterable[Image] = (),
        tools: Functions | None = None,
        **extras: Any,
    ) -> Any:
        """Say ``text`` and wait for the answer; keywords are those of ``Ollama.ask``, above the conversation's own.

        ``tools``: for this question in place of the conversation's; a typed answer (``returns``) is given without any.
        """
        shape, extras = bound(returns, extras)
        if self._offered(tools, extras):
            with self.stream(text, images=images, tools=tools, **extras) as pieces:
                for _ in pieces:
                    pass
            return pieces.answer
        said = _said(text, images)
        with question.told():
            reply = self._client.chat(self.model, self._with(said, shape), stream=False, **self._fields(extras))
        answer = self._heard([said], answer_of(self.model, reply))
        return answer if shape is None else value(shape, answer)

    def stream(
        self, /, text: str, *, images: Iterable[Image] = (), tools: Functions | None = None, **extras: Any
    ) -> Pieces:
        """The same, piece by piece. The conversation goes on once the last piece has come."""
        said, chat, fields, offered = _said(text, images), self, self._fields(extras), self._offered(tools, extras)

        def start(after: list[Message]) -> Chunks:
            with question.told():
                return chat._client.chat(chat.model, [*chat._with(said), *after], stream=True, **fields)

        if offered:
            fields["tools"] = offered.wire
        stream = Rounds(start, offered) if offered else start([])

        class Spoken(Pieces):
            def ended(self) -> None:
                chat._heard([said, *(stream.said if isinstance(stream, Rounds) else ())], self.answer)

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
        """Forget the last question and all that came after it."""
        while self.messages and self.messages.pop()["role"] != "user":
            pass

    def _with(self, said: Message, shape: Shape[Any] | None = None) -> list[Message]:
        told = with_fields(self.system, shape)
        system = [{"role": "system", "content": told}] if told else []
        return [*system, *self.messages, said]

    def _fields(self, extras: dict[str, Any]) -> dict[str, Any]:
        return question.fields_of({**self._extras, **extras})

    def _offered(self, tools: Functions | None, extras: dict[str, Any]) -> Tools | None:
        """The tools of a question; None for an answer that is bound to a form, which a call would not have."""
        bound = extras.get("format") is not None
        if bound and tools:
            raise BadRequest("an answer that has a type or a format calls no tools: ask in two questions")
        offered = self._tools if tools is None else Tools(tools)
        return offered if offered and not bound else None

    def _heard(self, said: list[Message], answer: Answer) -> Answer:
        """Take the question, what was said since, and the answer into the conversation."""
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
        self.messages += [*said, heard]
        return answer


def _said(text: str, images: Iterable[Image]) -> Message:
    question.text(text, "message")
    said: Message = {"role": "user", "content": text}
    if shown := question.encoded(images):
        said["images"] = shown
    return said
