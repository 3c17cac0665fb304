"""The progress of a run over rows: a bar with rate and remaining time, and one line at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ollama_nb.notebook.render import note_html

_ROW = "display: flex; align-items: center; gap: 0.8em"
_FIGURES = "color: var(--jp-ui-font-color2, #757575); font-variant-numeric: tabular-nums"
MIN_ROWS_FOR_RATE = 3  # a rate from fewer rows would be misleading


class RowProgress:
    """A page with a progress bar. ``known`` rows were answered by an earlier run: done, but not part of the rate."""

    def __init__(self, verb: str, total: int, *, known: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._verb, self.total, self.known, self._clock = verb, total, known, clock
        self.done, self.failed, self.cut_off = known, 0, 0
        self._began, self._ended = clock(), 0.0
        self._note = ""
        self._lines: list[str] = []
        self._logged = -1

    def add(self, rows: int, *, failed: bool = False, cut_off: bool = False) -> None:
        """Count rows that have an answer or an error."""
        self.done += rows
        self.failed += rows * failed
        self.cut_off += rows * cut_off
        if (tenth := self.done * 10 // max(self.total, 1)) > self._logged and self.done < self.total:
            self._logged = tenth
            self._lines.append(f"{tenth * 10}% · {self._figures()}")

    def finish(self) -> None:
        self._ended = self._clock()

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Part of the Page protocol; rows are counted by `add`."""

    def interrupt(self) -> None:
        self._note = "interrupted"

    def fail(self) -> None:
        self._note = "stopped by an error"

    @property
    def rate(self) -> float:
        """Rows per second in this run; 0 while too few rows are done."""
        asked, seconds = self.done - self.known, (self._ended or self._clock()) - self._began
        return asked / seconds if asked >= min(MIN_ROWS_FOR_RATE, self.total) and seconds > 0 else 0.0

    def html(self) -> str:
        if self._ended:
            return f'<div style="{_FIGURES}">{note_html(self._summary())}</div>'
        text = self._figures() + (f" · {self._note}" if self._note else "")
        return (
            f'<div style="{_ROW}"><progress max="{self.total}" value="{self.done}" style="width: 16em"></progress>'
            f'<span style="{_FIGURES}">{text}</span></div>'
        )

    def plain(self) -> str:
        """Without rate and duration, so that saved notebooks can be compared."""
        if self._ended:
            return f"{self._verb} {_rows(self.total)}{self._trouble()}"
        return f"{self._verb} {self.done:,} of {_rows(self.total)}" + (f" ({self._note})" if self._note else "")

    def log(self) -> str:
        lines = [*self._lines]
        if self._ended or self._note:
            lines.append(self._summary() if self._ended else f"{self._figures()} · {self._note}")
        return "".join(f"{line}\n" for line in lines)

    def _summary(self) -> str:
        parts = [f"{self._verb} {_rows(self.total)} in {_duration(self._ended - self._began)}"]
        if rate := self.rate:
            parts.append(f"{rate:.{1 if rate < 100 else 0}f} rows/s")
        if self.known:
            parts.append(f"{self.known:,} of them were answered by an earlier run")
        return " · ".join(parts) + self._trouble()

    def _trouble(self) -> str:
        failed = f" · {self.failed:,} failed" if self.failed else ""
        return failed + (f" · {self.cut_off:,} cut off at `num_predict`" if self.cut_off else "")

    def _figures(self) -> str:
        parts = [f"{self.done:,} of {_rows(self.total)}"]
        if rate := self.rate:
            parts += [f"{rate:.{1 if rate < 100 else 0}f} rows/s", f"{_duration((self.total - self.done) / rate)} left"]
        return " · ".join(parts) + (f" · {self.failed:,} failed" if self.failed else "")


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _duration(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
