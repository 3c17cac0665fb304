"""A conversation: its messages, the next request, the tools that run for it, and how the reply joins it.

:class:`Conversation` is the state that the Python API, the terminal, the magics and the chat widget share.
:class:`ChatTurn` is one question and its reply, as a stream of chunks::

    turn = conversation.start(client, "smollm2", user_message("Why is the sky blue?"))
    for chunk in turn:
        ...
    turn.commit()

Nothing is remembered before ``commit``, so a failed or abandoned question leaves the conversation as it was.

Overflow: the server drops whole messages, the oldest first, until the request fits into the context, and raises
ContextOverflow when the last message does not fit alone (``"truncate": "messages"``). A real Ollama knows only a bool
there; it then decides itself what it cuts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ollama_nb.api.events import Stats
from ollama_nb.client.chunks import (
    DoneChunk,
    Invocation,
    InvocationChunk,
    ParsedStream,
    PartialReply,
    ReplyChunk,
    TextChunk,
    ThinkingChunk,
    ToolCallsChunk,
)
from ollama_nb.errors import BadRequest, Cancelled, OllamaError

if TYPE_CHECKING:
    from ollama_nb.client.client import Client
    from ollama_nb.client.tools import Tools

MAX_TOOL_ROUNDS = 5
"""Replies in a row whose calls are run; a further one fails the question."""

Message = dict[str, Any]
"""One message as Ollama's API has it: role, content, and perhaps thinking, images, tool_calls."""

Truncate = bool | Literal["messages"] | None
"""What the server may drop to make a request fit: whole messages, anything (True), nothing (False), its default."""


def user_message(text: str, images: Iterable[str] = ()) -> Message:
    """A question. ``images`` are base64."""
    message: Message = {"role": "user", "content": text}
    if found := list(images):
        message["images"] = found
    return message


def assistant_message(text: str, thinking: str = "") -> Message:
    """A reply."""
    message: Message = {"role": "assistant", "content": text}
    return {**message, "thinking": thinking} if thinking else message


@dataclass(slots=True)
class Conversation:
    """The messages so far, oldest first. A ``system`` message precedes them in every request."""

    system: str = ""
    messages: list[Message] = field(default_factory=list)
    truncate: Truncate = "messages"

    def start(
        self,
        client: Client,
        model: str,
        question: Message,
        *,
        fields: Mapping[str, Any] | None = None,
        system: str | None = None,
        tools: Tools | None = None,
    ) -> ChatTurn:
        """Send a question. ``fields`` are those of a chat request; ``system`` replaces the conversation's for once.

        Raises OllamaError when the server refuses the request.
        """
        return ChatTurn(self, client, model, question, fields=fields or {}, system=system, tools=tools)

    def request(self, question: Message, system: str | None = None) -> list[Message]:
        """The messages of a request that asks ``question`` next."""
        text = self.system if system is None else system
        return [*([{"role": "system", "content": text}] if text else []), *self.messages, question]

    def add(self, question: Message, reply: Message, rounds: Iterable[Message] = ()) -> None:
        """Append a question, the calls and results of its tools, and the reply."""
        self.messages += [question, *rounds, reply]

    def undo(self) -> None:
        """Remove the last question and everything after it."""
        while self.messages and self.messages.pop()["role"] != "user":
            pass

    def clear(self) -> None:
        """Remove all messages; the system message stays."""
        self.messages = []


class ChatTurn(Iterator[ReplyChunk]):
    """A question and its reply. The request is sent at once; iterate to receive the chunks of the reply.

    With ``tools``, the functions that the model calls run here, their results go back to the model, and the chunks of
    all replies follow each other; only the last reply ends with a DoneChunk. ``reply`` is what has arrived so far.
    Iteration raises OllamaError when the model still calls functions after MAX_TOOL_ROUNDS rounds.
    """

    def __init__(
        self,
        conversation: Conversation,
        client: Client,
        model: str,
        question: Message,
        *,
        fields: Mapping[str, Any],
        system: str | None = None,
        tools: Tools | None = None,
    ) -> None:
        self.reply = PartialReply()
        self._conversation, self._client, self._model, self._question = conversation, client, model, question
        self._messages = conversation.request(question, system)
        self._fields, self._tools = fields, tools
        self._rounds: list[Message] = []
        self._closed = False
        self._stream = self._send()
        self._chunks = self._run() if tools else iter(self._stream)

    def __next__(self) -> ReplyChunk:
        chunk = next(self._chunks)
        self.reply.feed(chunk)
        return chunk

    def close(self) -> None:
        """Cancel the request, from any thread. A function that runs is not stopped."""
        self._closed = True
        self._stream.close()

    def commit(self) -> None:
        """Add the question, its tool rounds and the reply, as far as it has arrived, to the conversation."""
        reply = assistant_message(self.reply.text, self.reply.thinking)
        self._conversation.add(self._question, reply, self._rounds)

    def _send(self) -> ParsedStream:
        messages, truncate = [*self._messages, *self._rounds], self._conversation.truncate
        tools = self._tools.fields(first=not self._rounds) if self._tools else {}
        fields = {**self._fields, **tools, **({} if truncate is None else {"truncate": truncate})}
        try:
            return ParsedStream(self._client.chat(self._model, messages, stream=True, **fields))
        except BadRequest as error:
            if truncate != "messages" or type(error) is not BadRequest:
                raise
        # A server that accepts only a bool refuses the request with a plain 400, as it does for other mistakes in it.
        stream = self._client.chat(self._model, messages, stream=True, **{**fields, "truncate": True})
        self._conversation.truncate = True
        return ParsedStream(stream)

    def _run(self) -> Iterator[ReplyChunk]:
        """Receive replies and run the calls in them, until a reply has none."""
        for rounds_left in range(MAX_TOOL_ROUNDS, -1, -1):
            message: Message = {"role": "assistant", "content": ""}
            with closing(self._stream):
                yield from self._receive(message)
            if "tool_calls" not in message:
                return
            if not rounds_left:
                break
            results: list[Message] = []
            for call in message["tool_calls"]:
                yield from self._invoke(call, results)
            self._rounds += [message, *results]
            self._stream = self._send()
            if self._closed:  # while the request was sent
                self._stream.close()
                raise Cancelled("the answer was cancelled")
        raise OllamaError(f"the model called tools {MAX_TOOL_ROUNDS + 1} times in a row and gave no answer")

    def _receive(self, message: Message) -> Iterator[ReplyChunk]:
        """Pass one reply on and collect it in ``message``; the end of a reply with calls is left out."""
        for chunk in self._stream:
            match chunk:
                case TextChunk(text):
                    message["content"] += text
                case ThinkingChunk(text):
                    message["thinking"] = message.get("thinking", "") + text
                case ToolCallsChunk(calls):
                    message["tool_calls"] = [*message.get("tool_calls", ()), *calls]
                case DoneChunk() if "tool_calls" in message:
                    continue
            yield chunk

    def _invoke(self, call: Mapping[str, Any], results: list[Message]) -> Iterator[ReplyChunk]:
        """Run one call and append its result as a message."""
        assert self._tools is not None
        function = call.get("function") or {}
        invocation = Invocation(str(function.get("name", "")), function.get("arguments") or {})
        yield InvocationChunk(invocation)
        if self._closed:
            raise Cancelled("the answer was cancelled")
        invocation = self._tools.invoke(invocation)
        result = {"role": "tool", "content": invocation.content, "tool_name": invocation.name}
        results.append(result | ({"tool_call_id": call["id"]} if call.get("id") else {}))
        yield InvocationChunk(invocation)


def describe_omission(stats: Stats, option: str = "`num_ctx`") -> str:
    """What the server left out of a request to make it fit, as one sentence; empty when it sent everything.

    ``option`` names what widens the context, in the words of the place where the sentence appears.

    >>> describe_omission(Stats(messages_dropped=2, context_length=4096))
    'the 2 oldest messages did not fit into the context of 4096 tokens and were left out; `num_ctx` widens it'
    """
    if stats.messages_dropped == 1:
        what = "the oldest message"
    elif stats.messages_dropped:
        what = f"the {stats.messages_dropped} oldest messages"
    elif stats.prompt_tokens_dropped:
        what = f"{stats.prompt_tokens_dropped} tokens of the prompt"
    else:
        return ""
    size = f" of {stats.context_length} tokens" if stats.context_length else ""
    verb = "was" if stats.messages_dropped == 1 else "were"
    return f"{what} did not fit into the context{size} and {verb} left out; {option} widens it"
