"""Models on their way here: one thread each, progress told in steps that an eye can follow, and a way to cancel."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ollama_nb.api.units import human_bytes
from ollama_nb.client.client import Client
from ollama_nb.errors import OllamaError
from ollama_nb.notebook.progress import Progress

TELL_SECONDS = 0.1
_RATE_SECONDS = 5.0


@dataclass
class Pull:
    """One transfer. ``reference`` is what is pulled, ``name`` what it is called here."""

    reference: str
    name: str
    insecure: bool = False
    request_id: str = field(default_factory=lambda: secrets.token_hex(12))
    stopped: bool = False
    client: Client | None = None
    _progress: Progress = field(default_factory=lambda: Progress("pulled"))
    _seen: list[tuple[float, int]] = field(default_factory=list)

    def feed(self, chunk: dict[str, Any]) -> None:
        self._progress.feed(chunk)
        now = time.monotonic()
        self._seen = [(at, size) for at, size in self._seen if now - at < _RATE_SECONDS] + [(now, self._completed)]

    def shown(self) -> dict[str, Any]:
        """``total`` is 0 while the size is unknown; ``status`` says what is done now."""
        total, completed = sum(step.total for step in self._progress.steps), self._completed
        steps = self._progress.steps
        return {
            "name": self.name,
            "id": self.request_id,
            "status": steps[-1].status if steps else "connecting",
            "total": total,
            "completed": completed,
            "figures": f"{human_bytes(completed)} of {human_bytes(total)}{self._rate()}" if total else "",
        }

    @property
    def _completed(self) -> int:
        return sum(step.completed for step in self._progress.steps)

    def _rate(self) -> str:
        if len(self._seen) < 2:
            return ""
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return f" · {human_bytes(int((after - before) / (end - start)))}/s" if end > start and after > before else ""


class Pulls:
    """All pulls of a widget. ``changed`` is called, by any thread, with the list to show; ``ended`` with the name and
    an error text, empty when the model is here, None when it was cancelled."""

    def __init__(
        self,
        find_server: Callable[[], Client],
        changed: Callable[[list[dict[str, Any]]], None],
        ended: Callable[[str, str | None], None],
    ) -> None:
        self._find_server, self._changed, self._ended = find_server, changed, ended
        self._running: dict[str, Pull] = {}
        self._lock = threading.Lock()

    def shown(self) -> list[dict[str, Any]]:
        with self._lock:
            return [pull.shown() for pull in self._running.values()]

    def run(self, pull: Pull) -> None:
        """Pull to the end; a second pull of the same name does nothing. Blocking. Raises what is no OllamaError."""
        with self._lock:
            if pull.name in self._running:
                return
            self._running[pull.name] = pull
        error: str | None = ""
        try:
            self._changed(self.shown())
            self._read(pull)
        except OllamaError as failure:
            error = failure.message
        finally:
            with self._lock:
                del self._running[pull.name]
            self._changed(self.shown())
        self._ended(pull.name, None if pull.stopped else error)

    def stop(self, name: str) -> None:
        with self._lock:
            pull = self._running.get(name)
        if pull is not None:
            pull.stopped = True
            if pull.client is not None:
                pull.client.hang_up()

    def cancelled(self, name: str) -> None:
        """The server was told already; what ends the stream is no error."""
        with self._lock:
            if name in self._running:
                self._running[name].stopped = True

    def _read(self, pull: Pull) -> None:
        pull.client = self._find_server().twin({"X-Request-Id": pull.request_id})
        if pull.stopped:
            return
        fields: dict[str, Any] = {"insecure": True} if pull.insecure else {}
        if pull.name != pull.reference:
            fields["as"] = pull.name
        with self._teller() as news, contextlib.closing(pull.client.pull(pull.reference, **fields)) as stream:
            for chunk in stream:
                pull.feed(chunk)
                news.set()

    @contextlib.contextmanager
    def _teller(self) -> Iterator[threading.Event]:
        """Tell what changed when that event is set, at most every TELL_SECONDS; what came last is told, too, even if
        nothing comes after it for long."""
        news, over = threading.Event(), threading.Event()

        def tell() -> None:
            while news.wait() and not over.is_set():
                news.clear()
                self._changed(self.shown())
                over.wait(TELL_SECONDS)

        thread = threading.Thread(target=tell, daemon=True, name="ollama-nb-teller")
        thread.start()
        try:
            yield news
        finally:
            over.set()
            news.set()
            thread.join()
