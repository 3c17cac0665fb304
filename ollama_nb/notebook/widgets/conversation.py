"""The chat widget's conversation: its exchanges, one streaming answer, and the export as a notebook or as code.

Nothing here knows the widget. `Exchanges` and the export are pure; `WidgetAnswer` reads from a server.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ollama_nb.api.options import Options
from ollama_nb.client.chunks import INTERRUPTED
from ollama_nb.client.client import Client
from ollama_nb.client.conversation import (
    ChatTurn,
    Conversation,
    Message,
    Truncate,
    assistant_message,
    user_message,
)
from ollama_nb.errors import BadRequest, NotFound, OllamaError
from ollama_nb.notebook import render
from ollama_nb.notebook.reply import BROKEN, ReplyState, notes_of

THINK: dict[str, bool | str | None] = {
    "auto": None, "on": True, "off": False, "low": "low", "medium": "medium", "high": "high",
}  # fmt: skip
FORMATS = ("text", "json", "schema")
_SETTING_NAMES = {"context": "the context in the settings", "limits": "the context in the settings widens it"}
BATCH_SECONDS = 0.05  # time between two updates of the page; drawing every token would keep the browser busy


@dataclass(slots=True)
class ChatSettings:
    """The settings of a chat. None: the model's own value. ``format`` is one of FORMATS, ``schema`` JSON text."""

    system: str = ""
    temperature: float | None = None
    num_ctx: int | None = None
    think: str = "auto"
    format: str = "text"
    schema: str = ""

    def request(self) -> dict[str, Any]:
        """The fields of a chat request, as far as they are set. Raises BadRequest."""
        request: dict[str, Any] = {}
        if options := self.options():
            Options.layered(options)
            request["options"] = options
        if (think := THINK[self.think]) is not None:
            request["think"] = think
        if self.format != "text":
            request["format"] = "json" if self.format == "json" else _schema(self.schema)
        return request

    def options(self) -> dict[str, Any]:
        """The model options that are set."""
        values = {"temperature": self.temperature, "num_ctx": self.num_ctx}
        return {name: value for name, value in values.items() if value is not None}


def _schema(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the schema is not valid JSON: {error}") from None


@dataclass(slots=True)
class Exchange:
    """A question and its reply. ``images`` are base64. ``error`` is the message of the error that ended the reply."""

    id: int
    text: str
    images: tuple[str, ...]
    reply: ReplyState
    error: str = ""

    @property
    def answered(self) -> bool:
        return bool(self.reply.text)

    def question(self) -> Message:
        """The question as a message of the API."""
        return user_message(self.text, self.images)

    def to_page(self) -> dict[str, Any]:
        """The exchange for the page. ``html`` and ``thinking`` are safe HTML, ``raw`` is the text to copy."""
        reply = self.reply
        return {
            "id": self.id,
            "text": self.text,
            "images": list(self.images),
            "model": reply.model,
            "thinking": render.markdown_html(reply.thinking) if reply.thinking.strip() else "",
            "html": render.markdown_html(reply.text) if reply.text else "",
            "raw": reply.text,
            "notes": list(map(render.note_html, notes_of(reply.done, **_SETTING_NAMES) if reply.done else ())),
            "footer": render.footer(reply).removeprefix(reply.model).removeprefix(" · ") if reply.reason else "",
            "done": bool(reply.reason),
            "error": self.error,
        }

    def end(self) -> None:
        """Mark the reply as stopped by the user."""
        self.reply.reason = INTERRUPTED

    def fail(self, text: str) -> None:
        self.reply.reason, self.error = BROKEN, text


@dataclass(slots=True)
class Exchanges:
    """The exchanges of a chat, in order, and the settings of the next request."""

    settings: ChatSettings = field(default_factory=ChatSettings)
    exchanges: list[Exchange] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    truncate: Truncate = "messages"
    """As in Conversation; kept for the next request."""

    def ask(self, model: str, text: str, images: tuple[str, ...] = ()) -> Exchange:
        """Add a question."""
        exchange = Exchange(next(self._numbers), text, images, ReplyState(model))
        self.exchanges.append(exchange)
        return exchange

    def again(self, id: int, model: str, text: str | None = None) -> Exchange:
        """Repeat a question, or replace its text; later exchanges are dropped. Raises NotFound."""
        at = self._at(id)
        old = self.exchanges[at]
        del self.exchanges[at:]
        return self.ask(model, old.text if text is None else text, old.images)

    def clear(self) -> None:
        self.exchanges.clear()

    def conversation(self, until: Exchange | None = None) -> Conversation:
        """The system message and the answered exchanges before ``until``, ready for the next question.

        Exchanges without an answer are left out, so that user and assistant messages alternate.
        """
        system = self.settings.system if self.settings.system.strip() else ""
        conversation = Conversation(system, truncate=self.truncate)
        for exchange in self.exchanges:
            if exchange is until:
                break
            if exchange.answered:
                reply = exchange.reply
                conversation.add(exchange.question(), assistant_message(reply.text, reply.thinking))
        return conversation

    def messages(self) -> list[Message]:
        """The conversation in the format of the API."""
        conversation = self.conversation()
        system = [{"role": "system", "content": conversation.system}] if conversation.system else []
        return [*system, *conversation.messages]

    def _at(self, id: int) -> int:
        for at, exchange in enumerate(self.exchanges):
            if exchange.id == id:
                return at
        raise NotFound("that message no longer exists: the conversation has changed")


# streaming


class WidgetAnswer:
    """One streaming answer: one thread reads it from the server, another sends it to the page in batches.

    ``request_id`` identifies the request on the server from the start, so that any client can cancel it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.request_id = exchange, secrets.token_hex(12)
        self._markdown = {"text": GrowingMarkdown(), "thinking": GrowingMarkdown()}
        self._sent = {"text": 0, "thinking": 0}
        self._stopped = self._over = False
        self._pieces, self._first = 0, 0.0
        self._changed = threading.Event()
        self._client: Client | None = None

    def run(
        self,
        find_server: Callable[[], Client],
        ask: Callable[[Client], ChatTurn],
        send: Callable[[dict[str, Any]], None],
    ) -> None:
        """Read the answer to its end. Blocks. ``send`` receives what is new, at most every BATCH_SECONDS.

        Raises OllamaError for errors other than those caused by `stop`.
        """
        sender = threading.Thread(target=self._send, args=(send,), daemon=True, name="ollama-nb-sender")
        sender.start()
        try:
            self._read(find_server, ask)
        finally:
            self._over = True
            self._changed.set()
            sender.join()

    def stop(self) -> None:
        """Close the connection, which cancels the request on the server. Callable from any thread, repeatedly."""
        self._stopped = True
        if self._client is not None:
            self._client.hang_up()

    def _read(self, find_server: Callable[[], Client], ask: Callable[[Client], ChatTurn]) -> None:
        reply = self.exchange.reply
        try:
            self._client = find_server().twin({"X-Request-Id": self.request_id})
            if not self._stopped:
                with contextlib.closing(ask(self._client)) as stream:
                    for chunk in stream:
                        reply.feed(chunk)
                        self._pieces += 1
                        self._first = self._first or time.monotonic()
                        self._changed.set()
        except OllamaError:
            if not self._stopped:
                raise
        if self._stopped or reply.reason == "cancelled":
            self.exchange.end()

    def _send(self, send: Callable[[dict[str, Any]], None]) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._over:
                return
            if news := self._news():
                send({"id": self.exchange.id, **news})
            time.sleep(BATCH_SECONDS)

    def _news(self) -> dict[str, Any]:
        news: dict[str, Any] = {}
        for name, text in (("thinking", self.exchange.reply.thinking), ("text", self.exchange.reply.text)):
            if len(text) > self._sent[name]:
                self._sent[name] = len(text)
                settled, tail = self._markdown[name].feed(text)
                news[name] = {"settled": settled, "tail": tail}
        if news and self._pieces > 1 and (seconds := time.monotonic() - self._first) > 0:
            news["rate"] = round((self._pieces - 1) / seconds, 1)
        return news


_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_CONTINUES = re.compile(r"\s|[-*+]\s|\d+[.)]\s|[|>]")
"""The beginning of a line that may belong to the block before a blank line."""


class GrowingMarkdown:
    """Renders Markdown that grows at its end, in time proportional to its length.

    Blocks that can no longer change are rendered once; only the rest is rendered again. The result may differ slightly
    from rendering the whole text at once (a list with gaps), so the finished text is rendered once more as a whole.
    """

    def __init__(self) -> None:
        self.settled = 0
        """Characters that can no longer change."""

    def feed(self, text: str) -> tuple[str, str]:
        """Take the whole text so far. Returns HTML of the newly settled part, and of the rest."""
        end = self.settled + _settled_length(text[self.settled :])
        settled, self.settled = text[self.settled : end], end
        return render.markdown_html(settled) if settled else "", render.markdown_html(text[end:])


def _settled_length(text: str) -> int:
    """The length of the part before the last plain line that follows a blank line outside of a fence."""
    at = found = 0
    fenced, blank = False, False
    for line in text.splitlines(keepends=True):
        if blank and not fenced and line.endswith("\n") and line.strip() and not _CONTINUES.match(line):
            found = at
        if _FENCE.match(line):
            fenced = not fenced
        blank = not line.strip()
        at += len(line)
    return found


# export; images are left out, because cells refer to files or variables, which do not exist

_LOAD = "%load_ext ollama_nb"
_MARK = re.compile(r"\{\{(?=[^\W\d]\w*\}\})")


def to_code(chat: Exchanges, model: str) -> str:
    """Python code that asks the same questions, for one cell."""
    settings = chat.settings
    words = [repr(model), *([f"system={settings.system!r}"] if settings.system.strip() else [])]
    words += [f"{name}={value!r}" for name, value in settings.request().items() if name != "options"]
    words += [f"{name}={value!r}" for name, value in settings.options().items()]
    asked = [f"print(chat.ask({exchange.text!r}))" for exchange in _answered(chat)]
    return "\n".join(["import ollama_nb", "", f"chat = ollama_nb.connect().chat_session({', '.join(words)})", *asked])


def to_notebook(chat: Exchanges) -> dict[str, Any]:
    """A notebook (nbformat 4.5) whose cells are magics, with the answers as outputs."""
    found: list[tuple[str, list[dict[str, Any]]]] = [(_LOAD, [])]
    found += [(_magic(chat, exchange), [_output(exchange)]) for exchange in _answered(chat)]
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
            "language_info": {"name": "python"},
        },
        "cells": [
            {
                "id": f"chat-{number}",
                "cell_type": "code",
                "source": source,
                "outputs": outputs,
                "execution_count": None,
                "metadata": {},
            }
            for number, (source, outputs) in enumerate(found)
        ],
    }


def _answered(chat: Exchanges) -> list[Exchange]:
    return [exchange for exchange in chat.exchanges if exchange.answered]


def _magic(chat: Exchanges, exchange: Exchange) -> str:
    first = _answered(chat)[0] is exchange
    words = [f"%%ollama chat {exchange.reply.model}"]
    if first:
        words.append("--reset")
        if system := chat.settings.system.strip():
            words.append(f"--system {_quoted(system)}")
    words += [f"--{name.replace('_', '-')} {value}" for name, value in chat.settings.options().items()]
    return f"{' '.join(words)}\n{_literal(exchange.text)}"


def _literal(text: str) -> str:
    """The text with a space in ``{{name}}``, which a cell would replace by a variable."""
    return _MARK.sub("{{ ", text)


def _quoted(text: str) -> str:
    """The text as one quoted line, because the first line of a magic cannot be continued."""
    line = " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{line}"'


def _output(exchange: Exchange) -> dict[str, Any]:
    data = {"text/html": render.reply_html(exchange.reply), "text/plain": render.reply_plain(exchange.reply)}
    return {"output_type": "display_data", "data": data, "metadata": {}}
