"""Beginnings of prompts on disk: which are worth keeping, which comes back for a prompt, which go. Pure decisions.

What a prefix is worth is measured in seconds of computing that it saves, against the seconds of reading it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ollama_nb.engine.slots import MIN_SHARED, common_prefix

MIN_TOKENS = 64
GROWTH = 0.25
"""A longer version of a kept prefix is written once so much of it is new: a chat is not written again every turn."""
OLDEST = 7 * 86_400.0
"""Seconds after its last use until a prefix is removed."""
ABANDONED = 3600.0
"""Seconds until an unfinished file is taken for one that nobody writes any more."""
READ_RATE = 300e6
"""Bytes a second that are read and checked, until measured."""
READ_DELAY = 0.005
MARGIN = 2.0
"""Reading must be so many times faster than computing."""
UNFINISHED = ".part-"


@dataclass(frozen=True, slots=True)
class Prefix:
    """A kept prefix: its file, its tokens, the file's bytes, and the seconds that each token took to compute."""

    name: str
    tokens: list[int]
    size: int
    pace: float


@dataclass(frozen=True, slots=True)
class File:
    """A file in the folder; ``used``: Unix time of its last use."""

    name: str
    size: int
    used: float


def usable(prefix: Prefix, prompt: list[int], *, cuttable: bool) -> int:
    """How many tokens of ``prompt`` a kept prefix spares; memory that cannot be cut takes it whole or not at all."""
    count = common_prefix(prefix.tokens, prompt)
    return count if cuttable or count == len(prefix.tokens) else 0


def choose(
    known: Iterable[Prefix], prompt: list[int], held: int, *, cuttable: bool, limit: int, rate: float = READ_RATE
) -> tuple[Prefix, int] | None:
    """The prefix that saves the most time over the ``held`` tokens in memory, and how many tokens of it are used.

    ``limit``: most tokens that fit the context. None: computing is as good.
    """
    best, gain = None, 0.0
    for prefix in known:
        if len(prefix.tokens) > limit:
            continue
        count = usable(prefix, prompt, cuttable=cuttable)
        saved, cost = (count - held) * prefix.pace, READ_DELAY + prefix.size / rate
        if count - held >= MIN_SHARED and saved >= MARGIN * cost and saved - cost > gain:
            best, gain = (prefix, count), saved - cost
    return best


def worth_keeping(known: Iterable[Prefix], tokens: list[int], pace: float, *, cuttable: bool, least: float) -> bool:
    """Whether what is new in ``tokens`` saves at least ``least`` seconds another time, and is not too small a part."""
    if len(tokens) < MIN_TOKENS:
        return False
    covered = max((usable(prefix, tokens, cuttable=cuttable) for prefix in known), default=0)
    new = len(tokens) - covered
    return new > 0 and new * pace >= least and new >= GROWTH * len(tokens)


def superseded(known: Iterable[Prefix], tokens: list[int], *, cuttable: bool) -> list[Prefix]:
    """Kept prefixes that ``tokens`` continue: the longer one serves for them, where memory can be cut."""
    if not cuttable:
        return []
    return [p for p in known if len(p.tokens) < len(tokens) and tokens[: len(p.tokens)] == p.tokens]


def outdated(files: Sequence[File], *, cap: int, incoming: int, now: float) -> list[str]:
    """Names of the files that go so that ``incoming`` more bytes fit below ``cap``: old ones, then the least used."""
    gone = [file for file in files if now - file.used > (ABANDONED if file.name.startswith(UNFINISHED) else OLDEST)]
    kept = [file for file in files if file not in gone]
    total = sum(file.size for file in kept)
    for file in sorted(kept, key=lambda file: file.used):
        if total + incoming <= cap:
            break
        if not file.name.startswith(UNFINISHED):  # somebody is just writing it
            gone.append(file)
            total -= file.size
    return [file.name for file in gone]
