"""Spinners and progress bars as lines of text. Pure but for the clock that they are given."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ollama_nb.api.units import human_bytes
from ollama_nb.cli.durations import go_duration

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_SECONDS = 0.1
_SAMPLES = 10

Clock = Callable[[], float]


class Spinner:
    """A message with something that turns until it is stopped; with a percentage if one is set."""

    def __init__(self, message: str, clock: Clock = time.monotonic) -> None:
        self.message, self._clock, self._started = message, clock, clock()
        self.percent: int | None = None
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def line(self, width: int) -> str:
        text = self.message if self.percent is None else f"{self.message} {self.percent}%"
        if self._stopped:
            return f"{text} " if text else ""
        frame = FRAMES[int((self._clock() - self._started) / FRAME_SECONDS) % len(FRAMES)]
        return f"{text} {frame} " if text else f"{frame} "


class Bar:
    """How much of ``total`` bytes is there, how fast more comes, how long that will take."""

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
        self.completed = max(0, min(completed, self.total))
        now = self._clock()
        if now - self._samples[-1][0] >= 1:
            self._samples.append((now, self.completed))

    def rate(self) -> float:
        """Bytes per second over the last samples; 0 until there are two."""
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last - first) / max(1, round(end - start))) if end > start else 0.0

    def line(self, width: int) -> str:
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
        return f"{amount}  {human_bytes(int(rate)):>6}/s  {eta((self.total - self.completed) / rate):>6}"


def eta(seconds: float) -> str:
    """``59s``, ``1m30s``, ``2h5m``, ``99h+``."""
    if seconds >= 100 * 3600:
        return "99h+"
    if seconds >= 3600:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60)}m"
    return go_duration(round(seconds) * 1_000_000_000)
