"""How a blob is cut into parts, and what the files beside an unfinished blob say about them. Pure.

A part's state is written as a real Ollama writes it, so that either program goes on where the other one stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

LEAST, MOST = 32_000_000, 1_000_000_000
"""Bytes of a part, unless a blob is smaller."""
PARTS = 16

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes ``offset`` to ``offset + size`` of a blob, of which the first ``completed`` are there."""

    number: int
    offset: int
    size: int
    completed: int = 0
    etag: str = ""

    @property
    def end(self) -> int:
        return self.offset + self.size


def split(total: int, offset: int = 0, number: int = 0) -> tuple[Part, ...]:
    """Parts of ``offset`` to ``total``, numbered from ``number``; none when there is nothing between the two."""
    size = min(MOST, max(LEAST, -(-total // PARTS)))
    starts = range(offset, total, size)
    return tuple(Part(number + count, start, min(size, total - start)) for count, start in enumerate(starts))


def mend(found: Iterable[Part], total: int, on_disk: int) -> tuple[Part, ...]:
    """Parts that tile ``total`` bytes exactly: those found that can be true, and new ones in the gaps between them.

    ``on_disk``: the length of the unfinished file; what lies beyond it is not there, whatever a part says.
    """
    kept: list[Part] = []
    numbers: set[int] = set()
    at = 0
    for part in sorted(found, key=lambda part: (part.offset, -part.completed)):
        sound = part.offset >= at and part.size > 0 and part.end <= total and 0 <= part.completed <= part.size
        if sound and part.number not in numbers:
            there = max(0, min(part.completed, on_disk - part.offset))
            kept.append(replace(part, completed=there))
            numbers.add(part.number)
            at = part.end
    free = max(numbers, default=-1) + 1
    tiled: list[Part] = []
    at = 0
    for offset, end, old in [*((part.offset, part.end, (part,)) for part in kept), (total, total, ())]:
        new = split(offset, at, free)
        free += len(new)
        tiled += [*new, *old]
        at = end
    return tuple(tiled)


def encode(part: Part) -> bytes:
    body = {"N": part.number, "Offset": part.offset, "Size": part.size, "Completed": part.completed}
    # A real Ollama passes over the tag.
    return json.dumps(body | ({"ETag": part.etag} if part.etag else {}), separators=(",", ":")).encode() + b"\n"


def decode(raw: bytes) -> Part | None:
    """None for what is no part's state."""
    try:
        body = json.loads(raw)
        part = Part(body["N"], body["Offset"], body["Size"], body["Completed"], body.get("ETag", ""))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    numbers = (part.number, part.offset, part.size, part.completed)
    sound = all(type(number) is int and number >= 0 for number in numbers) and isinstance(part.etag, str)
    return part if sound else None


def content_range(text: str) -> tuple[int, int, int | None] | None:
    """First byte, last byte and length of the whole, which may be unknown; None for another kind of text."""
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    return (first, last, total) if first <= last and (total is None or last < total) else None
