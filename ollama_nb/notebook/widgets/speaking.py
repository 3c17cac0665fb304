"""One answer on its way from the server to the page: read in one thread, told in batches by another."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from ollama_nb.client.client import Client
from ollama_nb.errors import OllamaError
from ollama_nb.notebook.widgets.conversation import Exchange
from ollama_nb.notebook.widgets.growing import Growing

BATCH_SECONDS = 0.05
"""A page that draws every token spends its time on drawing; twenty times a second looks as smooth."""

Tell = Callable[[dict[str, Any]], None]


class Speaking:
    """``request_id`` names the request on the server from its first moment, so that anyone may stop it there."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.request_id = exchange, secrets.token_hex(12)
        self._growing = {"text": Growing(), "thinking": Growing()}
        self._told = {"text": 0, "thinking": 0}
        self._stopped = self._over = False
        self._pieces, self._first = 0, 0.0
        self._changed = threading.Event()
        self._client: Client | None = None

    def run(self, find_server: Callable[[], Client], ask: Callable[[Client], Any], tell: Tell) -> None:
        """Read the answer to its end. ``tell`` gets what is new, at most every BATCH_SECONDS.

        Errors end up in the exchange, as does a stop. Blocking.
        """
        teller = threading.Thread(target=self._tell, args=(tell,), daemon=True, name="ollama-nb-teller")
        teller.start()
        try:
            self._read(find_server, ask)
        finally:
            self._over = True
            self._changed.set()
            teller.join()

    def stop(self) -> None:
        """Hang up, which cancels the request on the server. Any thread may; twice does nothing."""
        self._stopped = True
        if self._client is not None:
            self._client.hang_up()

    def _read(self, find_server: Callable[[], Client], ask: Callable[[Client], Any]) -> None:
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

    def _tell(self, tell: Tell) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._over:
                return
            if news := self._news():
                tell({"id": self.exchange.id, **news})
            time.sleep(BATCH_SECONDS)

    def _news(self) -> dict[str, Any]:
        news: dict[str, Any] = {}
        for name, text in (("thinking", self.exchange.reply.thinking), ("text", self.exchange.reply.text)):
            if len(text) > self._told[name]:
                self._told[name] = len(text)
                settled, tail = self._growing[name].feed(text)
                news[name] = {"settled": settled, "tail": tail}
        if news and self._pieces > 1 and (seconds := time.monotonic() - self._first) > 0:
            news["rate"] = round((self._pieces - 1) / seconds, 1)
        return news
