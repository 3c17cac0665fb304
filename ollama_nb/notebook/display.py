"""One output that follows a stream: in a notebook it is rewritten in place, in a terminal its text grows.

Rule: at most ten updates a second, whatever the speed of the stream, and always a last one. With ``OLLAMA_NB_STREAM=0``
there is only the last one, so that saved notebooks can be compared.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import publish_display_data

from ollama_nb.errors import OllamaError
from ollama_nb.notebook.render import is_notebook
from ollama_nb.settings import Settings

INTERVAL = 0.1
"""Seconds between two updates of an output."""


class Page(Protocol):
    """Something that grows with a stream and can be shown at any time."""

    def feed(self, chunk: Mapping[str, Any]) -> None: ...
    def interrupt(self) -> None: ...
    def fail(self) -> None: ...
    def html(self) -> str: ...
    def plain(self) -> str: ...
    def log(self) -> str:
        """Text for a terminal: what it was a moment ago is always a prefix of what it is."""


class Screen(Protocol):
    """Where a page is shown."""

    def show(self, page: Page, *, now: bool = False) -> None:
        """What has changed may wait a little, unless ``now``: something else will take its time."""

    def finish(self, page: Page) -> None: ...


class Interrupted(KeyboardInterrupt):
    """The user stopped the cell. One line instead of a traceback; cells queued behind this one do not run."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class NotebookScreen:
    """One display that is updated in place."""

    def __init__(self, *, live: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._live, self._clock = live, clock
        self._id = uuid.uuid4().hex
        self._last: float | None = None

    def show(self, page: Page, *, now: bool = False) -> None:
        clock = self._clock()
        if self._live and (now or self._last is None or clock - self._last >= INTERVAL):
            self._publish(page)
            self._last = clock

    def finish(self, page: Page) -> None:
        if self._last is not None or page.html():
            self._publish(page)

    def _publish(self, page: Page) -> None:
        publish_display_data(  # type: ignore[no-untyped-call]
            {"text/html": page.html(), "text/plain": page.plain()},
            transient={"display_id": self._id} if self._live else {},
            update=self._last is not None,
        )


class TerminalScreen:
    """Prints what is new."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._printed = ""

    def show(self, page: Page, *, now: bool = False) -> None:
        if self._live:
            self._print(page.log())

    def finish(self, page: Page) -> None:
        self._print(page.log())

    def _print(self, log: str) -> None:
        sys.stdout.write(log.removeprefix(self._printed))
        sys.stdout.flush()
        self._printed = log


def screen_for(shell: InteractiveShell, *, live: bool = True) -> Screen:
    """``live`` False: shown once, at its end."""
    live = live and Settings.from_env().stream_in_notebook
    return NotebookScreen(live=live) if is_notebook(shell) else TerminalScreen(live=live)


def follow(start: Callable[[], Iterator[Mapping[str, Any]]], page: Page, screen: Screen) -> None:
    """Start a stream and show the page while the stream fills it.

    However this ends, the stream is closed (which cancels the request on the server) and what came stays on the screen.
    An interrupt becomes ``Interrupted``.
    """
    with ExitStack() as ending:
        ending.callback(screen.finish, page)
        try:
            screen.show(page)
            chunks = start()
            ending.callback(chunks.close)  # type: ignore[attr-defined]
            for chunk in chunks:
                page.feed(chunk)
                screen.show(page, now="called" in chunk)
        except KeyboardInterrupt:
            page.interrupt()
            raise Interrupted("Interrupted.") from None
        except OllamaError:
            page.fail()
            raise
