"""The chat widget: a conversation with a local model, in the page, that a busy kernel does not hold up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from IPython.core.getipython import get_ipython

from ollama_nb.client.client import Client
from ollama_nb.errors import BadRequest, NotFound, OllamaError
from ollama_nb.notebook.widgets import export
from ollama_nb.notebook.widgets.conversation import FORMATS, THINK, Conversation, Exchange, Settings
from ollama_nb.notebook.widgets.known import BUNDLED, choices, machine_memory, short
from ollama_nb.notebook.widgets.panel import Panel, is_local, source, words
from ollama_nb.notebook.widgets.pulls import Pull, Pulls
from ollama_nb.notebook.widgets.speaking import Speaking

Said = Mapping[str, Any]


class Chat(Panel):
    """A chat with ``model``; without one, with the model that was changed last.

    ``system``, ``temperature``, ``num_ctx``, ``think`` (auto, on, off, low, medium, high) and ``format`` (``json`` or
    a JSON Schema) are where its settings start. ``messages`` and ``notebook()`` give what was said; ``to_cell()`` puts
    code that asks the same below the cell that calls it.
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
        start = Settings(system, temperature, num_ctx, _one_of("think", think, THINK), **_format(format))
        start.request()  # what cannot be asked is refused here, not at the first question
        super().__init__(find_server)
        self.model = short(model)
        self._conversation = Conversation(start)
        self._speaking: Speaking | None = None
        self._models: list[dict[str, Any]] = []
        self._lock = threading.RLock()
        self._pulls = Pulls(self._find_server, self._pulling, self._pulled)

    def __repr__(self) -> str:
        return f"Chat({self.model!r})"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as the API takes it: role, content, thinking, images."""
        with self._lock:
            return self._conversation.messages()

    def notebook(self) -> dict[str, Any]:
        """The conversation as a notebook (nbformat 4.5): magics, with the answers as their outputs."""
        with self._lock:
            return export.notebook(self._conversation)

    def code(self) -> str:
        """Python that asks the same questions."""
        with self._lock:
            return export.code(self._conversation, self.model)

    def to_cell(self) -> None:
        """Put that code into a new cell below the one that calls this."""
        shell = get_ipython()
        if shell is None:
            raise BadRequest("a cell can be made in a notebook only")
        shell.set_next_input(self.code(), replace=False)

    def do_hello(self, said: Said) -> None:
        """A view of the page wants to know everything."""
        self._tell_all()
        self.work(self._look)

    def do_send(self, said: Said) -> None:
        text, images = str(said.get("text", "")), tuple(map(str, said.get("images") or ()))
        if not text.strip() and not images:
            return
        self._start(lambda: self._conversation.ask(self.model, text, images))

    def do_again(self, said: Said) -> None:
        """Regenerate an answer, or ask in other words."""
        text = said.get("text")
        self._start(lambda: self._conversation.again(int(said["id"]), self.model, text))

    def do_stop(self, said: Said) -> None:
        """The way to stop where the page could not reach the server itself."""
        with self._lock:
            speaking = self._speaking
        if speaking is not None:
            speaking.stop()

    def do_clear(self, said: Said) -> None:
        self.do_stop(said)
        with self._lock:
            self._conversation.clear()
        self._tell_all()

    def do_settings(self, said: Said) -> None:
        known = asdict(self._conversation.settings)
        changed = replace(self._conversation.settings, **{name: said[name] for name in known if name in said})
        changed.think, changed.format = (
            _one_of("think", changed.think, THINK),
            _one_of("format", changed.format, FORMATS),
        )
        self._conversation.settings = changed
        if changed.format != "schema" or changed.schema.strip():  # it was just chosen, and is written next
            changed.request()  # complains about what cannot be asked, which is kept all the same

    def do_model(self, said: Said) -> None:
        self.model = short(str(said["name"]))
        self.say("models", models=self._models, model=self.model)

    def do_look(self, said: Said) -> None:
        self.work(self._look)

    def do_pull(self, said: Said) -> None:
        name, reference = str(said["name"]), str(said.get("pull") or said["name"])
        pull = Pull(reference, name)
        self.work(lambda: self._pulls.run(pull), on_error=lambda text: self._pulled(name, text))

    def do_stop_pull(self, said: Said) -> None:
        (self._pulls.cancelled if said.get("told") else self._pulls.stop)(str(said["name"]))

    def do_export(self, said: Said) -> None:
        if said.get("as") == "code":
            self.say("copy", text=self.code())
        else:
            self.say("save", name="chat.ipynb", text=json.dumps(self.notebook(), ensure_ascii=False, indent=1))

    def _start(self, make: Callable[[], Exchange]) -> None:
        with self._lock:
            if self._speaking is not None:
                raise BadRequest("one answer at a time: stop this one first.")
            if not self.model:
                raise BadRequest("pick a model first.")
            exchange = make()
            self._speaking = speaking = Speaking(exchange)
            messages = self._conversation.messages(exchange)
            at = len(self._conversation.exchanges) - 1
            self.say("began", at=at, exchange=exchange.shown(), request=speaking.request_id)

        def answer() -> None:
            try:
                fields = self._conversation.settings.request()
                model = exchange.reply.model
                speaking.run(
                    self._find_server, lambda client: client.chat(model, messages, stream=True, **fields), self._news
                )
            except NotFound as error:
                exchange.fail(f"{words(error)}. Pick another model at the top left, or pull it there.")
            except OllamaError as error:
                exchange.fail(words(error))
            except Exception as error:
                exchange.fail(f"{type(error).__name__}: {error}")
                raise
            finally:
                with self._lock:
                    self._speaking = None
                self.say("ended", exchange=exchange.shown())

        self.work(answer)

    def _news(self, news: dict[str, Any]) -> None:
        self.say("news", **news)

    def _tell_all(self) -> None:
        with self._lock:
            speaking = self._speaking
            self.say(
                "all",
                exchanges=[exchange.shown() for exchange in self._conversation.exchanges],
                settings=asdict(self._conversation.settings),
                model=self.model,
                models=self._models,
                request=speaking.request_id if speaking else "",
                pulls=self._pulls.shown(),
            )

    def _look(self) -> None:
        """Ask the server for its models; the first one is the default."""
        client = self._find_server()
        here = client.list()["models"] or _bundled(client)
        found = choices(here, machine_memory() if is_local(client) else 0)
        with self._lock:
            self._models = found
            if not self.model and found and found[0]["here"]:
                self.model = str(found[0]["name"])
        self.say("models", models=found, model=self.model)

    def _pulling(self, pulls: list[dict[str, Any]]) -> None:
        self.say("pulls", pulls=pulls)

    def _pulled(self, name: str, error: str | None) -> None:
        self.say("pulled", name=name, error=error)
        if error == "":
            self.model = short(name)
            self.work(self._look)


def _bundled(client: Client) -> list[dict[str, Any]]:
    """Nobody should have to wait for a download before the first word: what the package carries."""
    try:
        client.show(BUNDLED)
    except NotFound:
        return []
    return list(client.list()["models"])


def _one_of(what: str, value: str, allowed: Any) -> str:
    if value not in allowed:
        raise BadRequest(f'{what} "{value}" is none of {", ".join(allowed)}')
    return value


def _format(form: str | dict[str, Any]) -> dict[str, str]:
    if form in ("", "text", "json"):
        return {"format": str(form or "text")}
    return {"format": "schema", "schema": form if isinstance(form, str) else json.dumps(form, ensure_ascii=False)}
