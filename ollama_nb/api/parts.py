"""Files that are parts of one model, by their names: ``model-00002-of-00003.safetensors`` and the same for GGUF."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from ollama_nb.errors import BadRequest

NAMED = 3  # missing parts that an error names
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<suffix>\.gguf|\.safetensors)")


@dataclass(frozen=True, slots=True)
class FilePart:
    """One part: ``number`` counts from 1 to ``count``. ``stem`` may contain folders."""

    path: str
    stem: str
    number: int
    count: int
    suffix: str

    @classmethod
    def of(cls, path: str) -> FilePart | None:
        """Parse a path; None if its name is not that of a part."""
        found = _PART.fullmatch(path)
        if found is None:
            return None
        return cls(path, found["stem"], int(found["number"]), int(found["count"]), found["suffix"])

    def sibling(self, number: int) -> str:
        """The path of another part."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}{self.suffix}"

    @property
    def set(self) -> tuple[str, int]:
        """Equal for the parts of one model."""
        return self.whole, self.count

    @property
    def whole(self) -> str:
        """The path that all parts together would have."""
        return self.stem + self.suffix


def check_parts(paths: Iterable[str]) -> None:
    """Raise BadRequest if parts are missing, given twice or of different wholes."""
    wholes: dict[str, dict[int, FilePart]] = {}
    for path in sorted(paths):
        if (part := FilePart.of(path)) is not None:
            _add_part(wholes.setdefault(part.whole, {}), part)
    for parts in wholes.values():
        _check_complete(parts)


def _add_part(known: dict[int, FilePart], part: FilePart) -> None:
    first = next(iter(known.values()), part)
    if part.count != first.count:
        raise BadRequest(f'"{first.path}" and "{part.path}" are not parts of one model: their counts differ')
    if not 1 <= part.number <= part.count:
        raise BadRequest(f'"{part.path}": there is no part {part.number} of {part.count}')
    if part.number in known:
        raise BadRequest(f'"{known[part.number].path}" and "{part.path}" are the same part of one model')
    known[part.number] = part


def _check_complete(parts: dict[int, FilePart]) -> None:
    first = next(iter(parts.values()))
    count = first.count - len(parts)
    if count:
        what = "split GGUF" if first.suffix == ".gguf" else "checkpoint"
        names = ", ".join(islice(_missing(parts, first), NAMED))
        more = f" and {count - NAMED} more" if count > NAMED else ""
        raise BadRequest(
            f'{what} "{first.path}" has {len(parts)} shards, expected {first.count}: {names}{more} '
            f"{'is' if count == 1 else 'are'} missing"
        )


def _missing(parts: dict[int, FilePart], first: FilePart) -> Iterator[str]:
    return (first.sibling(number) for number in range(1, first.count + 1) if number not in parts)
