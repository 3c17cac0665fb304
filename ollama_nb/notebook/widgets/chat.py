"""The chat widget: a conversation with a model that keeps working while the kernel is busy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from IPython.core.getipython import get_ipython

from ollama_nb.client.client import Client
from ollama_nb.errors import BadRequest, NotFound, OllamaError
from ollama_nb.notebook.widgets.conversation import (
    FORMATS,
    THINK,
    ChatSettings,
    Exchange,
    Exchanges,
    WidgetAnswer,
    to_code,
    to_notebook,
)
from ollama_nb.notebook.widgets.models import BUNDLED, Pulls, WidgetPull, choices, machine_memory, short
from ollama_nb.notebook.widgets.panel import PageMessage, Panel, describe, is_local, source


class Chat(Panel):
    """A chat with a model.

    Args:
        model: The model's name; without one, the model that was modified last.
        system: The system message.
        temperature, num_ctx: Model options; None for the model's own.
        think: ``auto``, ``on``, ``off``, ``low``, ``medium`` or ``high``.
        format: ``json`` or a JSON Schema.
        find_server: Returns a client for each request; `ollama_nb.connect` by default.

    `messages` and `notebook()` return the conversation; `to_cell()` inserts code that asks the same questions.
    """

    _esm = source("page.js", "picker.js", "message.js", "composer.js", "chat.js")

    def __init__(
        self,
        model: str = "",
        *,
        system: str = "",
        temperature: float | None = None,
        num_ctx: int | None = None,
        think: str = "auto",
        format: str | dict[str, Any] = "",
        find_server: Callable[[], Client] | None = None,
    ) -> None:
        start = ChatSettings(system, temperature, num_ctx, _one_of("think", think, THINK), **_format(format))
        start.request()  # raises BadRequest now instead of at the first question
        super().__init__(find_server)
        self.model = short(model)
        self._chat = Exchanges(start)
        self._answering: WidgetAnswer | None = None
        self._models: list[dict[str, Any]] = []
        self._lock = threading.RLock()
        self._pulls = Pulls(self._find_server, self._pulling, self._pulled)

    def __repr__(self) -> str:
        return f"Chat({self.model!r})"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in the format of the API: role, content, thinking, images."""
        with self._lock:
            return self._chat.messages()

    def notebook(self) -> dict[str, Any]:
        """The conversation as a notebook (nbformat 4.5): cells with magics, the answers as outputs."""
        with self._lock:
            return to_notebook(self._chat)

    def code(self) -> str:
        """Python code that asks the same questions."""
        with self._lock:
            return to_code(self._chat, self.model)

    def to_cell(self) -> None:
        """Insert that code into a new cell below the calling one."""
        shell = get_ipython()
        if shell is None:
            raise BadRequest("cells can be inserted in a notebook only")
        shell.set_next_input(self.code(), replace=False)

    def do_hello(self, message: PageMessage) -> None:
        """Send the whole state to a new view."""
        self._post_all()
        self.work(self._look)

    def do_send(self, message: PageMessage) -> None:
        text, images = str(message.get("text", "")), tuple(map(str, message.get("images") or ()))
        if not text.strip() and not images:
            return
        self._start(lambda: self._chat.ask(self.model, text, images))

    def do_again(self, message: PageMessage) -> None:
        """Regenerate an answer, or replace the question."""
        text = message.get("text")
        self._start(lambda: self._chat.again(int(message["id"]), self.model, text))

    def do_stop(self, message: PageMessage) -> None:
        """Stop the answer, if the page could not reach the server itself."""
        with self._lock:
            answering = self._answering
        if answering is not None:
            answering.stop()

    def do_clear(self, message: PageMessage) -> None:
        self.do_stop(message)
        with self._lock:
            self._chat.clear()
        self._post_all()

    def do_settings(self, message: PageMessage) -> None:
        known = asdict(self._chat.settings)
        changed = replace(self._chat.settings, **{name: message[name] for name in known if name in message})
        changed.think, changed.format = (
            _one_of("think", changed.think, THINK),
            _one_of("format", changed.format, FORMATS),
        )
        self._chat.settings = changed
        if changed.format != "schema" or changed.schema.strip():  # an empty schema is about to be entered
            changed.request()  # raises BadRequest for invalid values, which stay in the form

    def do_model(self, message: PageMessage) -> None:
        self.model = short(str(message["name"]))
        self.post("models", models=self._models, model=self.model)

    def do_look(self, message: PageMessage) -> None:
        self.work(self._look)

    def do_pull(self, message: PageMessage) -> None:
        name, reference = str(message["name"]), str(message.get("pull") or message["name"])
        pull = WidgetPull(reference, name)
        self.work(lambda: self._pulls.run(pull), on_error=lambda text: self._pulled(name, text))

    def do_stop_pull(self, message: PageMessage) -> None:
        (self._pulls.mark_cancelled if message.get("cancelled") else self._pulls.stop)(str(message["name"]))

    def do_export(self, message: PageMessage) -> None:
        if message.get("as") == "code":
            self.post("copy", text=self.code())
        else:
            self.post("save", name="chat.ipynb", text=json.dumps(self.notebook(), ensure_ascii=False, indent=1))

    def _start(self, make: Callable[[], Exchange]) -> None:
        with self._lock:
            if self._answering is not None:
                raise BadRequest("one answer at a time: stop the running one first.")
            if not self.model:
                raise BadRequest("pick a model first.")
            exchange = make()
            self._answering = answering = WidgetAnswer(exchange)
            conversation = self._chat.conversation(exchange)
            at = len(self._chat.exchanges) - 1
            self.post("began", at=at, exchange=exchange.to_page(), request=answering.request_id)

        def answer() -> None:
            try:
                fields = self._chat.settings.request()
                model = exchange.reply.model
                question = exchange.question()
                answering.run(
                    self._find_server,
                    lambda client: conversation.start(client, model, question, fields=fields),
                    self._news,
                )
                self._chat.truncate = conversation.truncate
            except NotFound as error:
                exchange.fail(f"{describe(error)}. Pick another model at the top left, or pull it there.")
            except OllamaError as error:
                exchange.fail(describe(error))
            except Exception as error:
                exchange.fail(f"{type(error).__name__}: {error}")
                raise
            finally:
                with self._lock:
                    self._answering = None
                self.post("ended", exchange=exchange.to_page())

        self.work(answer)

    def _news(self, news: dict[str, Any]) -> None:
        self.post("news", **news)

    def _post_all(self) -> None:
        with self._lock:
            answering = self._answering
            self.post(
                "all",
                exchanges=[exchange.to_page() for exchange in self._chat.exchanges],
                settings=asdict(self._chat.settings),
                model=self.model,
                models=self._models,
                request=answering.request_id if answering else "",
                pulls=self._pulls.to_page(),
            )

    def _look(self) -> None:
        """List the server's models; the first one is the default."""
        client = self._find_server()
        installed = client.list()["models"] or _bundled(client)
        found = choices(installed, machine_memory() if is_local(client) else 0)
        with self._lock:
            self._models = found
            if not self.model and found and found[0]["here"]:
                self.model = str(found[0]["name"])
        self.post("models", models=found, model=self.model)

    def _pulling(self, pulls: list[dict[str, Any]]) -> None:
        self.post("pulls", pulls=pulls)

    def _pulled(self, name: str, error: str | None) -> None:
        self.post("pulled", name=name, error=error)
        if error == "":
            self.model = short(name)
            self.work(self._look)


def _bundled(client: Client) -> list[dict[str, Any]]:
    """The bundled model, so that a first chat needs no download."""
    try:
        client.show(BUNDLED)
    except NotFound:
        return []
    return list(client.list()["models"])


def _one_of(what: str, value: str, allowed: Any) -> str:
    if value not in allowed:
        raise BadRequest(f'{what} "{value}" is not one of {", ".join(allowed)}')
    return value


def _format(form: str | dict[str, Any]) -> dict[str, str]:
    if form in ("", "text", "json"):
        return {"format": str(form or "text")}
    return {"format": "schema", "schema": form if isinstance(form, str) else json.dumps(form, ensure_ascii=False)}
