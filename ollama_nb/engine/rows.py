"""How many rows a step should have, by measured times.

Matrix kernels take rows in blocks; what is left over they take one by one, so that seven rows can cost more than eight.
Whether they do depends on model, processor and thread count, so it is measured on the fly: a size that is not known is
tried for two steps, and tried again later, less and less often. Rule: pure, times in, numbers of rows out.
"""

from __future__ import annotations

from collections import deque

BLOCKS = 4, 8
TRIES = 2
"""So many steps tell what a size costs (the faster one: the first one of a size also sets up buffers)."""
FIRST_LIFE, LIFETIME = 32, 512
"""Steps after which a size that was not used since is tried again: contexts grow, and a trial may have met a busy
moment. Each time it is twice as long, up to the second number."""
MARGIN = 0.97
"""More rows must take less than this share of the time of fewer."""


class _Known:
    """What one size took lately."""

    __slots__ = ("last", "life", "recent")

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=5)
        self.last = 0
        self.life = FIRST_LIFE

    @property
    def seconds(self) -> float:
        """The median; of two, the faster."""
        return sorted(self.recent)[(len(self.recent) - 1) // 2]


class RowTimes:
    """Seconds a step of n rows, each with logits, for every number of threads; ``most`` rows at most."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._tables: dict[tuple[int, bool], dict[int, _Known]] = {}
        self._table: dict[int, _Known] = {}
        self._clock = 0
        self.use(1)

    def use(self, threads: int, *, adapted: bool = False) -> None:
        """From now on so many threads compute, on weights that adapters change or not."""
        self._table = self._tables.setdefault((threads, adapted), {})

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        self._clock += 1
        known = self._table.setdefault(rows, _Known())
        if known.recent and self._clock - known.last > known.life:
            known.recent.clear()
            known.life = min(2 * known.life, LIFETIME)
        known.recent.append(seconds)
        known.last = self._clock

    def seconds(self, rows: int) -> float | None:
        """What a step took when it was last measured; None: never."""
        known = self._table.get(rows)
        return known.seconds if known else None

    def fresh(self, rows: int) -> bool:
        """It is known well, and still true."""
        known = self._table.get(rows)
        return known is not None and len(known.recent) >= TRIES and self._clock - known.last < known.life

    def rounded(self, rows: int) -> int:
        """The number of rows to make of so many: more of them only where that is measured to take less time."""
        if not 1 < rows < self.most:
            return rows
        choices = sorted({rows, *(up(rows, block) for block in BLOCKS)})
        best, least = rows, float("inf")
        for choice in choices:
            if choice > self.most:
                break
            if not self.fresh(choice):
                return choice
            seconds = self._table[choice].seconds
            if seconds < least * MARGIN:
                best, least = choice, seconds
        return best


def up(count: int, block: int) -> int:
    """The next multiple of ``block``."""
    return -(-count // block) * block
