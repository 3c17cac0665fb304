"""An unfinished download of one blob: a sparse file, and a journal file for each of its parts.

The journal has the format and the file names of a real Ollama, so that either program resumes what the other one
started. The functions on :class:`BlobPart` do no I/O.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from ollama_nb import disk
from ollama_nb.api.names import Digest
from ollama_nb.disk import InPlaceFile
from ollama_nb.errors import StoreError
from ollama_nb.store.blobs import BlobStore

MIN_PART, MAX_PART = 32_000_000, 1_000_000_000
"""Bytes; the limits of a part's size (the last part may be smaller)."""
TARGET_PARTS = 16  # parts of a blob within the limits of their size

JOURNAL_LAG = 4 << 20  # bytes that all journals together may be behind the file
_STATE_BYTES = 4096  # bytes of a journal file that are read
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class BlobPart:
    """The bytes ``offset`` to ``offset + size`` of a blob, of which the first ``completed`` have been downloaded."""

    number: int
    offset: int
    size: int
    completed: int = 0
    etag: str = ""

    @property
    def end(self) -> int:
        return self.offset + self.size


def split_blob(total: int, offset: int = 0, number: int = 0) -> tuple[BlobPart, ...]:
    """Split the bytes ``offset`` to ``total`` into parts numbered from ``number``."""
    size = min(MAX_PART, max(MIN_PART, -(-total // TARGET_PARTS)))
    starts = range(offset, total, size)
    return tuple(BlobPart(number + count, start, min(size, total - start)) for count, start in enumerate(starts))


def repair_parts(found: Iterable[BlobPart], total: int, on_disk: int) -> tuple[BlobPart, ...]:
    """Return parts that cover ``total`` bytes exactly: those of ``valid_parts``, and new ones in the gaps."""
    kept = valid_parts(found, total, on_disk)
    free = max((part.number for part in kept), default=-1) + 1
    parts: list[BlobPart] = []
    at = 0
    for offset, end, old in [*((part.offset, part.end, (part,)) for part in kept), (total, total, ())]:
        new = split_blob(offset, at, free)
        free += len(new)
        parts += [*new, *old]
        at = end
    return tuple(parts)


def valid_parts(found: Iterable[BlobPart], total: int, on_disk: int) -> list[BlobPart]:
    """Return the parts of ``found`` that are valid in a blob of ``total`` bytes and do not overlap, in order.

    ``on_disk`` is the length of the unfinished file; bytes beyond it count as missing.
    """
    kept: list[BlobPart] = []
    numbers: set[int] = set()
    at = 0
    for part in sorted(found, key=lambda part: (part.offset, -part.completed)):
        valid = part.offset >= at and part.size > 0 and part.end <= total and 0 <= part.completed <= part.size
        if valid and part.number not in numbers:
            downloaded = max(0, min(part.completed, on_disk - part.offset))
            kept.append(replace(part, completed=downloaded))
            numbers.add(part.number)
            at = part.end
    return kept


def encode_part(part: BlobPart) -> bytes:
    """Encode a journal file as a real Ollama does."""
    body = {"N": part.number, "Offset": part.offset, "Size": part.size, "Completed": part.completed}
    # A real Ollama ignores ETag.
    return json.dumps(body | ({"ETag": part.etag} if part.etag else {}), separators=(",", ":")).encode() + b"\n"


def decode_part(raw: bytes) -> BlobPart | None:
    """Parse a journal file; None if it is not valid."""
    try:
        body = json.loads(raw)
        part = BlobPart(body["N"], body["Offset"], body["Size"], body["Completed"], body.get("ETag", ""))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    numbers = (part.number, part.offset, part.size, part.completed)
    valid = all(type(number) is int and number >= 0 for number in numbers) and isinstance(part.etag, str)
    return part if valid else None


def parse_content_range(text: str) -> tuple[int, int, int | None] | None:
    """Parse a Content-Range header into first byte, last byte and total length (None if unknown).

    Returns None for anything else.
    """
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    return (first, last, total) if first <= last and (total is None or last < total) else None


class PartProgress:
    """A part that is being downloaded, by one thread at a time."""

    def __init__(self, part: BlobPart) -> None:
        self.part = part
        self.done = part.completed
        self._saved = part.completed

    @property
    def complete(self) -> bool:
        return self.done == self.part.size

    @property
    def at(self) -> int:
        """The offset of its next byte in the blob."""
        return self.part.offset + self.done

    @property
    def unsaved(self) -> int:
        """Bytes that the journal does not include yet."""
        return abs(self.done - self._saved)

    def state(self, etag: str) -> BlobPart:
        """Return the state for the journal and mark it as saved."""
        self._saved = self.done
        return replace(self.part, completed=self.done, etag=etag)


class PartialBlob:
    """The file ``sha256-…-partial`` and its journals ``-partial-N``. Leaving the ``with`` block saves the journals."""

    def __init__(self, blobs: BlobStore, digest: Digest, size: int, streams: int) -> None:
        self.digest, self.size = digest, size
        self._blobs = blobs
        self._lag = max(1, JOURNAL_LAG // streams)
        self._file = InPlaceFile(blobs.tree, partial_path(blobs, digest))
        try:
            found = _read_journal(blobs, digest)
            self.etag = next((part.etag for part in found if part.etag), "")
            self.parts = [PartProgress(part) for part in repair_parts(found, size, self._file.size)]
            if self._file.size != size:
                self._file.resize(size)
            self._write_journal(found)
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> int:
        """Downloaded bytes."""
        return sum(part.done for part in self.parts)

    @property
    def complete(self) -> bool:
        return all(part.complete for part in self.parts)

    @property
    def contiguous(self) -> int:
        """Downloaded bytes from the start to the first gap."""
        for part in self.parts:
            if not part.complete:
                return part.at
        return self.size

    def write(self, part: PartProgress, data: bytes) -> None:
        """Write the next bytes of a part; save its journal from time to time."""
        self._file.write_at(data, part.at)
        part.done += len(data)
        if part.unsaved >= self._lag:
            self._save(part)

    def read(self, size: int, offset: int) -> bytes:
        """Read downloaded bytes."""
        return self._file.read_at(size, offset)

    def restart(self, *, whole: bool = False) -> None:
        """Discard all downloaded bytes; no thread may be writing. ``whole``: continue with a single part."""
        self._remove_journal()
        self._file.resize(0)
        self._file.resize(self.size)
        self.etag = ""
        parts = (BlobPart(0, 0, self.size),) if whole and self.size else split_blob(self.size)
        self.parts = [PartProgress(part) for part in parts]
        self._write_journal([])

    def finish(self) -> None:
        """Give the blob its final name, after its digest was verified."""
        self._file.commit(self._blobs.path(self.digest))
        self._remove_journal()
        self.parts = []

    def discard(self) -> None:
        """Remove the file and its journals."""
        self._remove_journal()
        self.parts = []
        self._blobs.tree.remove(self._file.path)

    def close(self) -> None:
        """Save the journals and close the file."""
        # On a full disk the journals keep their last state.
        with contextlib.suppress(StoreError):
            for part in self.parts:
                if part.unsaved:
                    self._save(part)
        self._file.close()

    def __enter__(self) -> PartialBlob:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _save(self, part: PartProgress) -> None:
        path = self._file.path.with_name(f"{self._file.path.name}-{part.part.number}")
        self._blobs.tree.write_unsynced(path, encode_part(part.state(self.etag)))

    def _write_journal(self, found: list[BlobPart]) -> None:
        """Make the journals match the parts, because a real Ollama assumes that they cover the whole blob."""
        if len(self.parts) == 1 and not found:
            return  # a single new part needs no journal yet
        known = {replace(part, etag="") for part in found}
        numbers = {part.part.number for part in self.parts}
        for path in _journal_files(self._blobs, self.digest):
            if path.name.rpartition("-")[2] not in map(str, numbers):
                self._blobs.tree.remove(path)
        for part in self.parts:
            if replace(part.part, etag="") not in known:
                self._save(part)

    def _remove_journal(self) -> None:
        for path in _journal_files(self._blobs, self.digest):
            self._blobs.tree.remove(path)


def partial_path(blobs: BlobStore, digest: Digest) -> Path:
    """Return the path of an unfinished blob."""
    return blobs.root / f"{digest.filename}-partial"


def downloaded_bytes(blobs: BlobStore, digest: Digest, size: int) -> int:
    """Return how many bytes of an unfinished blob need not be downloaded again. Nothing is planned for the others."""
    on_disk = disk.regular_size(partial_path(blobs, digest))
    return sum(part.completed for part in valid_parts(_read_journal(blobs, digest), size, on_disk or 0))


def _read_journal(blobs: BlobStore, digest: Digest) -> list[BlobPart]:
    found = []
    for path in _journal_files(blobs, digest):
        with contextlib.suppress(OSError), path.open("rb") as file:
            part = decode_part(file.read(_STATE_BYTES))
            if part is not None and path.name.endswith(f"-partial-{part.number}"):
                found.append(part)
    return found


def _journal_files(blobs: BlobStore, digest: Digest) -> list[Path]:
    prefix = f"{digest.filename}-partial-"
    try:
        return [path for path in blobs.root.iterdir() if path.name.startswith(prefix)]
    except FileNotFoundError:
        return []
