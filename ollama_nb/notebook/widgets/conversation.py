"""A chat as a list of exchanges: what was asked, with its pictures, and the reply. Pure; knows no widget, no server."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from ollama_nb.api.options import Options
from ollama_nb.client.chunks import INTERRUPTED
from ollama_nb.errors import BadRequest, NotFound
from ollama_nb.notebook import render
from ollama_nb.notebook.reply import BROKEN, ReplyState

THINK: dict[str, bool | str | None] = {
    "auto": None, "on": True, "off": False, "low": "low", "medium": "medium", "high": "high",
}  # fmt: skip
FORMATS = ("text", "json", "schema")


@dataclass(slots=True)
class Settings:
    """How a chat asks. None: the model's own value. ``format``: one of FORMATS; ``schema`` is its JSON text."""

    system: str = ""
    temperature: float | None = None
    num_ctx: int | None = None
    think: str = "auto"
    format: str = "text"
    schema: str = ""

    def request(self) -> dict[str, Any]:
        """The fields of a chat request; what is not set is left out. Raises BadRequest."""
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
        """Those that are set."""
        values = {"temperature": self.temperature, "num_ctx": self.num_ctx}
        return {name: value for name, value in values.items() if value is not None}


def _schema(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the schema is no JSON: {error}") from None


@dataclass(slots=True)
class Exchange:
    """``images`` are base64. ``error`` is what ended the reply, if something did."""

    id: int
    text: str
    images: tuple[str, ...]
    reply: ReplyState
    error: str = ""

    @property
    def answered(self) -> bool:
        return bool(self.reply.text)

    def shown(self) -> dict[str, Any]:
        """All of it for the page; ``html`` and ``thinking`` are harmless, ``raw`` is the text that copying gives."""
        reply = self.reply
        return {
            "id": self.id,
            "text": self.text,
            "images": list(self.images),
            "model": reply.model,
            "thinking": render.markdown_html(reply.thinking) if reply.thinking.strip() else "",
            "html": render.markdown_html(reply.text) if reply.text else "",
            "raw": reply.text,
            "notes": [render.note_html(_for_widget(note)) for note in reply.notes],
            "footer": render.footer(reply).removeprefix(reply.model).removeprefix(" · ") if reply.reason else "",
            "done": bool(reply.reason),
            "error": self.error,
        }

    def end(self) -> None:
        """Stopped by its reader."""
        self.reply.reason = INTERRUPTED

    def fail(self, text: str) -> None:
        self.reply.reason, self.error = BROKEN, text


@dataclass(slots=True)
class Conversation:
    settings: Settings = field(default_factory=Settings)
    exchanges: list[Exchange] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def ask(self, model: str, text: str, images: tuple[str, ...] = ()) -> Exchange:
        exchange = Exchange(next(self._numbers), text, images, ReplyState(model))
        self.exchanges.append(exchange)
        return exchange

    def again(self, id: int, model: str, text: str | None = None) -> Exchange:
        """Ask once more, in other words perhaps; what came after is forgotten. Raises NotFound."""
        at = self._at(id)
        old = self.exchanges[at]
        del self.exchanges[at:]
        return self.ask(model, old.text if text is None else text, old.images)

    def clear(self) -> None:
        self.exchanges.clear()

    def messages(self, until: Exchange | None = None) -> list[dict[str, Any]]:
        """What a server is sent: answered exchanges, then the question of ``until``. One without an answer is left
        out, as the next question would otherwise follow a question."""
        found: list[dict[str, Any]] = []
        if self.settings.system.strip():
            found.append({"role": "system", "content": self.settings.system})
        for exchange in self.exchanges:
            if exchange is until:
                break
            if exchange.answered:
                found += [_question(exchange), _answer(exchange.reply)]
        if until is not None:
            found.append(_question(until))
        return found

    def _at(self, id: int) -> int:
        for at, exchange in enumerate(self.exchanges):
            if exchange.id == id:
                return at
        raise NotFound("that message is gone: the conversation was changed meanwhile")


def _for_widget(note: str) -> str:
    """A note that names a magic's options, for someone who has settings instead."""
    for option in ("`--num-predict` and `--num-ctx` set it", "`--num-ctx` widens it"):
        note = note.replace(option, "The context in the settings widens it")
    return note


def _question(exchange: Exchange) -> dict[str, Any]:
    images = {"images": list(exchange.images)} if exchange.images else {}
    return {"role": "user", "content": exchange.text, **images}


def _answer(reply: ReplyState) -> dict[str, Any]:
    thinking = {"thinking": reply.thinking} if reply.thinking else {}
    return {"role": "assistant", "content": reply.text, **thinking}
