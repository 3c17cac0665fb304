"""What a benchmark line is: what it needs, how one round of it is measured, and the rows that it fills in the table."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from peers import Server


@dataclass(frozen=True, slots=True)
class Round:
    """One round: random prompts that are the same for every server in it, and no other round's."""

    seed: int
    vocabulary: int
    llama_bench: str | None = None

    def rng(self) -> random.Random:
        return random.Random(self.seed)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a line. ``aim``: the ratio that the project wants beside llama-server, or beside ``Line.limit``."""

    key: str
    title: str
    unit: str
    better: Literal["more", "less"]
    aim: float

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times better ours is: over 1 is faster, or smaller."""
        return ours / theirs if self.better == "more" else theirs / ours


Values = dict[str, float]
Pairs = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the benchmark, measured beside servers (``measure``), beside something else (``pairs``), or both.

    ``threads`` 0: as many as the run is told. ``optional``: ``pairs`` only stands in where no server is at hand.
    ``rivals``: the servers that can be measured at all; none named: every one. ``warms``: it warms servers up itself.
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
