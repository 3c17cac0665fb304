"""A conversation from Python: ``Ollama.chat_session``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar, overload

from ollama_nb.client import question
from ollama_nb.client.answer import Answer, AnswerStream
from ollama_nb.client.client import Client
from ollama_nb.client.conversation import Conversation, Message, describe_omission, user_message
from ollama_nb.client.question import Image, Overflow
from ollama_nb.client.shape import add_field_list, bind_format, parse_value
from ollama_nb.client.tools import Functions, ToolChoiceWord, Tools
from ollama_nb.client.warn import warn_caller
from ollama_nb.errors import BadRequest

T = TypeVar("T")


class HistoryDropped(UserWarning):
    """A part of a conversation, usually its oldest messages, did not fit into the context and was left out."""


class ChatSession:
    """A conversation with one model. ``messages`` are the messages so far, oldest first; ``system`` precedes them.

    When the history outgrows the context, its oldest messages are left out of the request, with a HistoryDropped
    warning; a message that does not fit alone raises ContextOverflow before the answer begins, unless
    ``on_overflow="truncate"``. A server that cuts such a message itself, as Ollama does, causes the warning.

    ``tools`` are Python functions that the model may call; their docstrings and type hints describe them. They run in
    this process, with the model's arguments; results and exceptions go back to the model until it answers in words.

    ``tool_choice``: ``"auto"``, ``"required"`` (the first reply to each question calls a function), ``"none"``, or the
    name of the function that it calls. ``parallel_tool_calls`` False: one call at a time.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        *,
        system: str = "",
        tools: Functions = (),
        tool_choice: ToolChoiceWord = "auto",
        parallel_tool_calls: bool = True,
        on_overflow: Overflow = "error",
        **extras: Any,
    ) -> None:
        question.request_fields(extras)
        self._may_cut = question.may_truncate(on_overflow)
        self._conversation = Conversation(system, truncate=True if self._may_cut else "messages")
        self._client, self._extras, self.model = client, extras, model
        self._functions, self._tool_choice, self._parallel = tools, tool_choice, parallel_tool_calls
        Tools(tools, tool_choice)  # raises for wrong ones now

    @property
    def system(self) -> str:
        return self._conversation.system

    @system.setter
    def system(self, text: str) -> None:
        self._conversation.system = text

    @property
    def messages(self) -> list[Message]:
        return self._conversation.messages

    @messages.setter
    def messages(self, messages: list[Message]) -> None:
        self._conversation.messages = messages

    def __repr__(self) -> str:
        return f"ChatSession({self.model!r}, {len(self.messages)} messages)"

    @overload
    def ask(
        self,
        /,
        text: str,
        *,
        returns: None = None,
        images: Iterable[Image] = (),
        tools: Functions | None = None,
        tool_choice: ToolChoiceWord | None = None,
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
        tool_choice: ToolChoiceWord | None = None,
        **extras: Any,
    ) -> Any:
        """Send ``text`` and wait for the answer; keywords are those of ``Ollama.ask`` and override the session's.

        ``tools`` and ``tool_choice`` replace the session's for this question; a typed answer (``returns``) uses none.
        """
        shape, extras = bind_format(returns, extras)
        system = add_field_list(self.system, shape)
        with self._start(text, images, self._select_tools(tools, tool_choice, extras), extras, system) as pieces:
            for _ in pieces:
                pass
        return pieces.answer if shape is None else parse_value(shape, pieces.answer)

    def stream(
        self,
        /,
        text: str,
        *,
        images: Iterable[Image] = (),
        tools: Functions | None = None,
        tool_choice: ToolChoiceWord | None = None,
        **extras: Any,
    ) -> AnswerStream:
        """Like ``ask``, but yield the answer piece by piece. It joins the conversation when the last piece arrives."""
        return self._start(text, images, self._select_tools(tools, tool_choice, extras), extras, self.system)

    def twin(self) -> ChatSession:
        """The same conversation on a connection of its own; both share the messages."""
        other = copy.copy(self)
        other._client = self._client.twin()
        return other

    def hang_up(self) -> None:
        """Cancel the running requests, from any thread; later requests raise Cancelled."""
        self._client.hang_up()

    def undo(self) -> None:
        """Remove the last question and everything after it."""
        self._conversation.undo()

    def _start(
        self,
        text: str,
        images: Iterable[Image],
        tools: Tools | None,
        extras: dict[str, Any],
        system: str | None,
    ) -> AnswerStream:
        question.check_text(text, "message")
        turn = self._conversation.start(
            self._client,
            self.model,
            user_message(text, question.encode_images(images)),
            fields=question.request_fields({**self._extras, **extras}),
            system=system,
            tools=tools,
        )

        def complete(answer: Answer) -> None:
            turn.commit()
            self._warn(answer)

        return AnswerStream(self.model, turn, complete)

    def _select_tools(
        self, functions: Functions | None, choice: ToolChoiceWord | None, extras: dict[str, Any]
    ) -> Tools | None:
        """The tools of a question; None for an answer with a format, which cannot contain calls."""
        has_format = extras.get("format") is not None
        if has_format and (functions or choice not in (None, "auto", "none")):
            raise BadRequest("an answer that has a type or a format calls no tools: ask in two questions")
        if has_format:
            return None
        choice = choice or (self._tool_choice if functions is None else "auto")
        selected = Tools(self._functions if functions is None else functions, choice, parallel=self._parallel)
        return selected or None

    def _warn(self, answer: Answer) -> None:
        """Warn about what was left out of the request. The answer is complete and is kept."""
        stats = answer.stats
        if stats is None or (self._may_cut and not stats.messages_dropped):
            return
        if omission := describe_omission(stats):
            warn_caller(omission, HistoryDropped)
