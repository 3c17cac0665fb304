"""A benchmark line: its requirements, how to measure one round, and the rows that it fills in the table."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from peers import Server


@dataclass(frozen=True, slots=True)
class Round:
    """One round: random prompts, equal for every server in the round and different in every round."""

    seed: int
    vocabulary: int
    llama_bench: str | None = None

    def rng(self) -> random.Random:
        return random.Random(self.seed)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a line. ``aim`` is the target ratio to llama-server, or to ``Line.limit``."""

    key: str
    title: str
    unit: str
    better: Literal["more", "less"]
    aim: float

    def ratio(self, ours: float, theirs: float) -> float:
        """Ours compared with the other: over 1 is faster, or smaller."""
        return ours / theirs if self.better == "more" else theirs / ours


Values = dict[str, float]
Pairs = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the benchmark, compared with servers (``measure``), with something else (``pairs``), or both.

    ``threads`` 0 uses the threads of the run. With ``optional``, ``pairs`` is measured only if no server is available.
    ``rivals`` are the servers that support the line, all by default. With ``warms``, the line warms servers up itself.
    """

    name: str
    model: str
    rows: tuple[Row, ...]
    rounds: int
    slots: int = 1
    context: int = 2048
    threads: int = 0
    measure: Callable[[Server, Round], Values] | None = None
    pairs: Callable[[Server, Round], Pairs] | None = None
    beside: str = ""
    optional: bool = False
    rivals: tuple[str, ...] = ()
    warms: bool = False
