"""Cell output that follows a stream: a notebook updates one display in place, a terminal prints what is new.

At most ten updates a second are sent, whatever the speed of the stream, and always one at the end. Each update of a
notebook's output is the whole output, so those of long answers are rarer: their characters per second are limited. With
``OLLAMA_NB_STREAM=0`` only the last update is sent, so that saved notebooks can be compared.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol, cast

from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import publish_display_data

from ollama_nb.client.answer import Answer, other_answers
from ollama_nb.client.chunks import InvocationChunk
from ollama_nb.errors import OllamaError
from ollama_nb.notebook import render
from ollama_nb.notebook.reply import ReplyState
from ollama_nb.settings import Settings

INTERVAL = 0.1  # seconds between two updates of an output
MAX_RATE = 80_000  # characters per second that the updates of one output send; up to 8,000 are sent every INTERVAL


class Page(Protocol):
    """The content of a cell output: fed by a stream, rendered at any time."""

    def feed(self, chunk: Any) -> None: ...
    def interrupt(self) -> None: ...
    def fail(self) -> None: ...
    def html(self) -> str: ...
    def plain(self) -> str: ...
    def log(self) -> str:
        """Text for a terminal. Each later log begins with the earlier one."""


class Screen(Protocol):
    """The place where a page is shown."""

    def show(self, page: Page, *, now: bool = False) -> None:
        """Update the output, or wait for the next interval unless ``now``."""

    def finish(self, page: Page) -> None:
        """Show the final state."""


class Interrupted(KeyboardInterrupt):
    """The user stopped the cell.

    IPython shows one line instead of a traceback, and cells queued behind this one do not run.
    """

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class ReplyPage:
    """A reply as the content of a cell output."""

    def __init__(self, reply: ReplyState) -> None:
        self.reply = reply
        self.feed, self.interrupt, self.fail = reply.feed, reply.interrupt, reply.fail

    def html(self) -> str:
        return render.reply_html(self.reply)

    def plain(self) -> str:
        return render.reply_plain(self.reply)

    def log(self) -> str:
        return render.reply_log(self.reply)


class CellAnswer(Answer):
    """The result of a cell: a string with metadata. The cell has already shown it while it streamed."""

    _reply: ReplyState
    _shown_at: int | None

    def __new__(cls, reply: ReplyState) -> CellAnswer:
        self = cast(
            CellAnswer,
            super().__new__(
                cls,
                reply.text,
                model=reply.model,
                thinking=reply.thinking,
                reason=reply.reason,
                stats=reply.stats,
                warnings=tuple(reply.notes),
                calls=tuple(step.invocation for step in reply.steps if step.invocation.content is not None),
                stop_sequence=reply.stop_sequence,
                others=other_answers(reply.model, reply),
            ),
        )
        self._reply = reply
        self._shown_at = current_cell()
        return self

    @property
    def usage(self) -> dict[str, int | float]:
        """Counts of tokens, tokens per second and seconds in total; empty for an incomplete answer."""
        if (stats := self.stats) is None:
            return {}
        speed = stats.output_tokens / stats.output_seconds if stats.output_seconds > 0 else 0.0
        return {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "output_tokens": stats.output_tokens,
            "reasoning_tokens": stats.reasoning_tokens,
            "tokens_per_second": round(speed, 1),
            "seconds": round(stats.total_seconds, 3),
        }

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self._reply,)

    def _ipython_display_(self) -> None:
        if was_just_shown(self._shown_at):
            if not is_notebook(get_ipython()):
                print(render.footer(self._reply))
            return
        page = ReplyPage(self._reply)
        publish_display_data({"text/html": page.html(), "text/plain": page.plain()})  # type: ignore[no-untyped-call]


class NotebookScreen:
    """A display that is updated in place."""

    def __init__(self, *, live: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._live, self._clock = live, clock
        self._id = uuid.uuid4().hex
        self._last: float | None = None
        self._next = 0.0

    def show(self, page: Page, *, now: bool = False) -> None:
        clock = self._clock()
        if self._live and (now or self._last is None or clock >= self._next):
            sent = self._publish(page)
            self._last, self._next = clock, clock + max(INTERVAL, sent / MAX_RATE)

    def finish(self, page: Page) -> None:
        if self._last is not None or page.html():
            self._publish(page)

    def _publish(self, page: Page) -> int:
        """Send the whole page; return its size in characters."""
        data = {"text/html": page.html(), "text/plain": page.plain()}
        publish_display_data(  # type: ignore[no-untyped-call]
            data,
            transient={"display_id": self._id} if self._live else {},
            update=self._last is not None,
        )
        return sum(map(len, data.values()))


class TerminalScreen:
    """Standard output, to which only the new part of a page's log is printed."""

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


def is_notebook(shell: Any) -> bool:
    """Whether the shell is a kernel, whose front end shows HTML, and not a terminal."""
    return getattr(shell, "kernel", None) is not None


def current_cell() -> int | None:
    """The number of the running cell; None outside IPython."""
    shell = get_ipython()
    return None if shell is None else shell.execution_count


def was_just_shown(cell: int | None) -> bool:
    """Whether ``cell`` is still running, so that its result is already in its output."""
    return cell is not None and cell == current_cell()


def screen_for(shell: InteractiveShell, *, live: bool = True) -> Screen:
    """The screen of the running cell. With ``live`` False it is updated only once, at the end."""
    live = live and Settings.from_env().stream_in_notebook
    return NotebookScreen(live=live) if is_notebook(shell) else TerminalScreen(live=live)


def follow(start: Callable[[], Iterator[Any]], page: Page, screen: Screen) -> None:
    """Start a stream, feed its chunks to the page and keep the screen up to date.

    In every case the stream is closed, which cancels the request on the server, and the received part stays on the
    screen. Raises Interrupted in place of KeyboardInterrupt.
    """
    with ExitStack() as ending:
        ending.callback(screen.finish, page)
        try:
            screen.show(page)
            chunks = start()
            ending.callback(chunks.close)  # type: ignore[attr-defined]
            for chunk in chunks:
                page.feed(chunk)
                screen.show(page, now=isinstance(chunk, InvocationChunk))
        except KeyboardInterrupt:
            page.interrupt()
            raise Interrupted("Interrupted.") from None
        except OllamaError:
            page.fail()
            raise
