"""Progress on standard error: redrawn lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http import HTTPStatus
from types import TracebackType
from typing import TextIO, TypeVar

from ollama_nb.api import events
from ollama_nb.api.units import human_bytes
from ollama_nb.cli.terminal import (
    CLEAR_LINE,
    CLEAR_TO_END,
    HIDE_CURSOR,
    LINE_START,
    SHOW_CURSOR,
    SYNC_OFF,
    SYNC_ON,
    UP,
    is_terminal,
    size_of,
)
from ollama_nb.errors import ConnectError, OllamaError, from_code
from ollama_nb.verbs.present import char_width, display_width, go_duration

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_SECONDS = 0.1
_SAMPLES = 10  # for the rate, at least a second apart

Clock = Callable[[], float]


class Spinner:
    """A message with a turning symbol until it is stopped, and with a percentage if one is set."""

    def __init__(self, message: str, clock: Clock = time.monotonic) -> None:
        self.message, self._clock, self._started = message, clock, clock()
        self.percent: int | None = None
        self._stopped = False

    def stop(self) -> None:
        """Keep the message without the symbol."""
        self._stopped = True

    def line(self, width: int) -> str:
        """The current line; ``width`` is ignored."""
        text = self.message if self.percent is None else f"{self.message} {self.percent}%"
        if self._stopped:
            return f"{text} " if text else ""
        frame = FRAMES[int((self._clock() - self._started) / FRAME_SECONDS) % len(FRAMES)]
        return f"{text} {frame} " if text else f"{frame} "


class TransferBar:
    """A progress bar in bytes, with the rate and the remaining time."""

    def __init__(self, message: str, total: int, completed: int = 0, clock: Clock = time.monotonic) -> None:
        self.message, self.total, self.completed = message, total, min(completed, total)
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), self.completed)], maxlen=_SAMPLES)

    @property
    def percent(self) -> int:
        return int(self.completed / self.total * 100) if self.total else 0

    @property
    def done(self) -> bool:
        return self.completed >= self.total

    def set(self, completed: int) -> None:
        """Record the transferred bytes."""
        self.completed = max(0, min(completed, self.total))
        now = self._clock()
        if now - self._samples[-1][0] >= 1:
            self._samples.append((now, self.completed))

    def rate(self) -> float:
        """Bytes per second over the last samples, 0 with fewer than two."""
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last - first) / max(1, round(end - start))) if end > start else 0.0

    def line(self, width: int) -> str:
        """The current line in ``width`` columns."""
        left = f"{self.message.strip()} {self.percent:3d}%"
        right = self._right()
        inner = max(0, width - len(left) - len(right) - 5)
        filled = inner * self.completed // self.total if self.total else 0
        return f"{left} ▕{'█' * filled}{' ' * (inner - filled)}▏ {right}"

    def _right(self) -> str:
        total = f"{human_bytes(self.total):>6}"
        if self.done:
            return total + " " * 25
        rate = self.rate()
        amount = f"{human_bytes(self.completed):>6}/{total}"
        if not rate:
            return amount + " " * 18
        return f"{amount}  {human_bytes(int(rate)):>6}/s  {remaining_time((self.total - self.completed) / rate):>6}"


def remaining_time(seconds: float) -> str:
    """``59s``, ``1m30s``, ``2h5m``, ``99h+``."""
    if seconds >= 100 * 3600:
        return "99h+"
    if seconds >= 3600:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60)}m"
    return go_duration(round(seconds) * 1_000_000_000)


ProgressElement = Spinner | TransferBar
T = TypeVar("T")
E = TypeVar("E", Spinner, TransferBar)


class ProgressDisplay:
    """Spinners and bars below each other, drawn until the ``with`` block ends."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live = is_terminal(self._out)
        self._elements: list[ProgressElement] = []
        self._lock = threading.Lock()
        self._drawn = 0
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._printed: dict[int, tuple[str, int]] = {}

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def spinner(self, message: str) -> Spinner:
        """Add a spinner."""
        return self._add(Spinner(message))

    def bar(self, message: str, total: int, completed: int = 0) -> TransferBar:
        """Add a bar."""
        return self._add(TransferBar(message, total, completed))

    def touch(self, element: ProgressElement) -> None:
        """Where lines cannot be redrawn, print a change: each message once, then every tenth percent."""
        if self._live:
            return
        decile = -1 if element.percent is None else element.percent // 10
        if not element.message or self._printed.get(id(element)) == (element.message, decile):
            return
        self._printed[id(element)] = (element.message, decile)
        percent = f" {element.percent}%" if element.percent is not None else ""
        self._write(f"{element.message}{percent}\n")

    def stop(self) -> None:
        """Draw the lines a last time and leave them. A second call has no effect."""
        if self._end():
            for element in self._elements:
                if isinstance(element, Spinner):
                    element.stop()
            self._draw()
            self._write("\n")

    def clear(self) -> None:
        """Erase the lines. A second call has no effect."""
        if self._end():
            self._write((CLEAR_LINE + LINE_START) + (UP + CLEAR_LINE + LINE_START) * (self._drawn - 1) + SHOW_CURSOR)

    def _add(self, element: E) -> E:
        with self._lock:
            self._elements.append(element)
        if self._live and not self._ticker.is_alive() and not self._ended.is_set():
            self._ticker.start()
        self.touch(element)
        return element

    def _end(self) -> bool:
        """Stop drawing and return whether anything was drawn."""
        if self._ended.is_set():
            return False
        self._ended.set()
        if not self._ticker.ident:
            return False
        self._ticker.join()
        return True

    def _tick(self) -> None:
        while not self._ended.is_set():
            self._draw()
            self._ended.wait(FRAME_SECONDS)

    def _draw(self) -> None:
        columns, height = size_of(self._out)
        with self._lock:
            lines = [shorten(element.line(columns), columns) for element in self._elements[-height:]]
        up = UP * (self._drawn - 1) + LINE_START
        self._drawn = len(lines)
        self._write(
            SYNC_ON + HIDE_CURSOR + up + "\n".join(line + CLEAR_TO_END for line in lines) + SHOW_CURSOR + SYNC_OFF
        )

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def shorten(line: str, columns: int) -> str:
    """The line cut to the width: a wrapped line would break the count of lines when the cursor moves up."""
    if display_width(line) <= columns:
        return line
    kept, width = "", 0
    for char in line:
        width += char_width(char)
        if width >= columns:
            break
        kept += char
    return kept + "…"


@contextlib.contextmanager
def report_progress() -> Iterator[events.Report]:
    """A ``report`` function for work in this process, drawn as one bar per status and file."""
    with ProgressDisplay() as progress:
        bars: dict[tuple[str, str], TransferBar] = {}

        def report(line: events.Progress) -> None:
            key = (line.status, line.digest)
            bar = bars.get(key)
            if bar is None:
                bar = bars[key] = progress.bar(f"{line.status}:", line.total)
            bar.set(line.completed)
            progress.touch(bar)

        yield report


def with_status(call: Callable[[], T]) -> T:
    """Start a stream. As in Ollama, the message of a refused request begins with the HTTP status."""
    try:
        return call()
    except ConnectError:
        raise
    except OllamaError as error:
        status = str(error.status)
        with contextlib.suppress(ValueError):  # a status without a name
            status += f" {HTTPStatus(error.status).phrase}"
        raise from_code(error.code, f"{status}: {error.message}", error.status) from None
