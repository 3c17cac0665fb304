"""The base class of the widgets: messages to and from the page, work in threads, error messages.

Everything that takes time runs in a thread, because a busy handler would block every widget of the kernel.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget

from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.errors import ConnectError, OllamaError
from ollama_nb.net import is_loopback_url

PageMessage = Mapping[str, Any]
"""A message of the page, without the name of its handler."""

_FOLDER = Path(__file__).parent
_log = logging.getLogger(__name__)


def source(*names: str) -> str:
    """Files of this folder, joined to one module or style sheet, because a widget's script cannot import others."""
    return "\n".join((_FOLDER / name).read_text("utf-8") for name in names)


class Panel(anywidget.AnyWidget):
    """A widget. The page sends ``{"do": NAME, …}``, which calls ``do_NAME``; ``post`` sends ``{"kind": …}`` to it.

    ``find_server`` is called for each piece of work, because servers start and stop.
    """

    # One style sheet for all widgets: on a page with several of them the last one wins.
    _css = source("page.css", "chat.css", "manager.css")

    def __init__(self, find_server: Callable[[], Client] | None = None) -> None:
        super().__init__()
        self._find_server = find_server or connect
        self.on_msg(self._on_message)
        self._release_thread()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def post(self, kind: str, **fields: Any) -> None:
        """Send a message to every view of this widget. Callable from any thread."""
        self.send({"kind": kind, **fields})
        self._release_thread()

    def work(self, job: Callable[[], None], *, on_error: Callable[[str], None] | None = None) -> None:
        """Run ``job`` in a thread. The message of an error goes to ``on_error``, or to the page."""

        def run() -> None:
            try:
                job()
            except OllamaError as error:
                (on_error or self.report_error)(describe(error))
            except Exception as error:
                _log.exception("%s failed", job)
                (on_error or self.report_error)(f"{type(error).__name__}: {error}")

        threading.Thread(target=run, daemon=True, name="ollama-nb-widget").start()

    def report_error(self, text: str) -> None:
        self.post("problem", text=text)

    def _on_message(self, _widget: Any, content: Mapping[str, Any], _buffers: Any) -> None:
        act = getattr(self, f"do_{content.get('do')}", None)
        if act is None:
            return
        try:
            act({name: value for name, value in content.items() if name != "do"})
        except OllamaError as error:
            self.report_error(describe(error))

    def _release_thread(self) -> None:
        """Let the kernel handle the page's next message in a thread of its own.

        ipykernel handles the messages of a comm in the thread that used the comm last. After a message from a cell or
        from one of our threads that is the main thread, where the next message would wait for the running cell.
        """
        if self.comm is not None:
            self.comm.__dict__.pop("_reply_subshell_id", None)


def is_local(client: Client) -> bool:
    """Whether the server is on this machine, so that memory and disk sizes of this machine apply to it."""
    return is_loopback_url(client.url)


def describe(error: OllamaError) -> str:
    """The message of an error as a widget shows it."""
    text = error.message or type(error).__name__
    return f"{text[:1].upper()}{text[1:]}" if not isinstance(error, ConnectError) else f"No server: {text}"
