"""Progress on standard error: live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TextIO, TypeVar

from ollama_nb.cli.bars import FRAME_SECONDS, Bar, Spinner
from ollama_nb.cli.tables import char_width, display_width
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

Element = Spinner | Bar
E = TypeVar("E", Spinner, Bar)


class Progress:
    """Elements one below the other, for as long as the ``with`` block lasts."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live = is_terminal(self._out)
        self._elements: list[Element] = []
        self._lock = threading.Lock()
        self._drawn = 0
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._told: dict[int, tuple[str, int]] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def spinner(self, message: str) -> Spinner:
        return self._add(Spinner(message))

    def bar(self, message: str, total: int, completed: int = 0) -> Bar:
        return self._add(Bar(message, total, completed))

    def touch(self, element: Element) -> None:
        """Tell what changed, where lines cannot be drawn again: each message once, then every tenth percent."""
        if self._live:
            return
        decile = -1 if element.percent is None else element.percent // 10
        if not element.message or self._told.get(id(element)) == (element.message, decile):
            return
        self._told[id(element)] = (element.message, decile)
        percent = f" {element.percent}%" if element.percent is not None else ""
        self._write(f"{element.message}{percent}\n")

    def stop(self) -> None:
        """Leave the lines as they are. Stopping twice does nothing."""
        if self._end():
            for element in self._elements:
                if isinstance(element, Spinner):
                    element.stop()
            self._draw()
            self._write("\n")

    def clear(self) -> None:
        """Take the lines away."""
        if self._end():
            self._write((CLEAR_LINE + LINE_START) + (UP + CLEAR_LINE + LINE_START) * (self._drawn - 1) + SHOW_CURSOR)

    def _add(self, element: E) -> E:
        with self._lock:
            self._elements.append(element)
        if self._live and not self._ticker.is_alive() and not self._over.is_set():
            self._ticker.start()
        self.touch(element)
        return element

    def _end(self) -> bool:
        """Stop drawing; True if there is something on the screen that wants an end."""
        if self._over.is_set():
            return False
        self._over.set()
        if not self._ticker.ident:
            return False
        self._ticker.join()
        return True

    def _tick(self) -> None:
        while not self._over.is_set():
            self._draw()
            self._over.wait(FRAME_SECONDS)

    def _draw(self) -> None:
        columns, height = size_of(self._out)
        with self._lock:
            lines = [shortened(element.line(columns), columns) for element in self._elements[-height:]]
        up = UP * (self._drawn - 1) + LINE_START
        self._drawn = len(lines)
        self._write(
            SYNC_ON + HIDE_CURSOR + up + "\n".join(line + CLEAR_TO_END for line in lines) + SHOW_CURSOR + SYNC_OFF
        )

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def shortened(line: str, columns: int) -> str:
    """A line that would wrap would be counted wrongly when the cursor goes up again."""
    if display_width(line) <= columns:
        return line
    kept, width = "", 0
    for char in line:
        width += char_width(char)
        if width >= columns:
            break
        kept += char
    return kept + "…"
