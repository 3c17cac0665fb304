"""What the server works on just now, and a way to cancel it: no prompt, only figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_nb.notebook.widgets.panel import Panel, source

Said = Mapping[str, Any]


class Activity(Panel):
    """Requests that run and wait: model, state, tokens, speed. It asks only while someone looks at it."""

    _esm = source("page.js", "activity.js")

    def do_hello(self, said: Said) -> None:
        self.work(self._look)

    do_look = do_hello

    def do_cancel(self, said: Said) -> None:
        """The way to cancel where the page could not reach the server itself."""
        self.work(lambda: self._cancel(str(said["id"])))

    def _cancel(self, request_id: str) -> None:
        self._find_server().cancel(request_id)
        self._look()

    def _look(self) -> None:
        self.say("queue", requests=self._find_server().queue()["requests"])
