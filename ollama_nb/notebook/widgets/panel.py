"""What all widgets have in common: messages to and from the page, work in threads, errors in words.

Rule: whatever takes time runs in a thread, because one busy handler would hold up every widget of the kernel.
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

_HERE = Path(__file__).parent
_log = logging.getLogger(__name__)


def source(*names: str) -> str:
    """Files of this folder as one module or style sheet: a widget's script cannot import its neighbours."""
    return "\n".join((_HERE / name).read_text("utf-8") for name in names)


class Panel(anywidget.AnyWidget):
    """A widget. The page sends ``{"do": NAME, …}``, which calls ``do_NAME``; ``say`` sends ``{"kind": …}`` to it.

    ``find_server`` gives a client, anew for each piece of work, because servers come and go.
    """

    # One style sheet for all: a page with several widgets has several of them, and the last one wins.
    _css = source("page.css", "chat.css", "manager.css")

    def __init__(self, find_server: Callable[[], Client] | None = None) -> None:
        super().__init__()
        self._find_server = find_server or connect
        self.on_msg(self._heard)
        self._unpin()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def say(self, kind: str, **fields: Any) -> None:
        """Tell every view of this widget. Any thread may."""
        self.send({"kind": kind, **fields})
        self._unpin()

    def work(self, job: Callable[[], None], *, on_error: Callable[[str], None] | None = None) -> None:
        """Run ``job`` in a thread. What goes wrong is told to the page, or to ``on_error``."""

        def run() -> None:
            try:
                job()
            except OllamaError as error:
                (on_error or self.complain)(words(error))
            except Exception as error:
                _log.exception("%s failed", job)
                (on_error or self.complain)(f"{type(error).__name__}: {error}")

        threading.Thread(target=run, daemon=True, name="ollama-nb-widget").start()

    def complain(self, text: str) -> None:
        self.say("problem", text=text)

    def _heard(self, _widget: Any, content: Mapping[str, Any], _buffers: Any) -> None:
        act = getattr(self, f"do_{content.get('do')}", None)
        if act is None:
            return
        try:
            act({name: value for name, value in content.items() if name != "do"})
        except OllamaError as error:
            self.complain(words(error))

    def _unpin(self) -> None:
        """Let the page's next message run beside a busy cell.

        A kernel handles a widget's messages in the thread that used its channel last. Told from a cell or from a
        thread of ours, that is the main one, where the message would wait until the running cell ends.
        """
        if self.comm is not None:
            self.comm.__dict__.pop("_reply_subshell_id", None)


def is_local(client: Client) -> bool:
    """Whether its server is on this machine, so that what is known of this machine is true of it."""
    return is_loopback_url(client.url)


def words(error: OllamaError) -> str:
    """An error for someone who looks at a widget rather than at a command line."""
    text = error.message or type(error).__name__
    return f"{text[:1].upper()}{text[1:]}" if not isinstance(error, ConnectError) else f"No server: {text}"
