"""A blob that is arriving: its sparse file, and the journal of its parts beside it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ollama_nb import disk
from ollama_nb.api.names import Digest
from ollama_nb.errors import StoreError
from ollama_nb.store.blobs import BlobStore
from ollama_nb.store.inplace import InPlace
from ollama_nb.store.transfer import plan
from ollama_nb.store.transfer.plan import Part

JOURNAL_BEHIND = 4 << 20
"""The most bytes that the journals of all parts together may be behind the file."""
_STATE_BYTES = 4096


class Arriving:
    """One part while it is written, by one thread at a time."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.done = part.completed
        self._saved = part.completed

    @property
    def complete(self) -> bool:
        return self.done == self.part.size

    @property
    def at(self) -> int:
        """Where its next byte lies in the blob."""
        return self.part.offset + self.done

    @property
    def unsaved(self) -> int:
        return abs(self.done - self._saved)

    def state(self, etag: str) -> Part:
        """To be written to the journal now."""
        self._saved = self.done
        return replace(self.part, completed=self.done, etag=etag)


class Partial:
    """``sha256-…-partial`` with its ``-partial-N``; leaving the ``with`` block brings the journal up to date."""

    def __init__(self, blobs: BlobStore, digest: Digest, size: int, streams: int) -> None:
        self.digest, self.size = digest, size
        self._blobs = blobs
        self._lag = max(1, JOURNAL_BEHIND // streams)
        self._file = InPlace(blobs.tree, partial_path(blobs, digest))
        try:
            found = _journal(blobs, digest)
            self.etag = next((part.etag for part in found if part.etag), "")
            self.parts = [Arriving(part) for part in plan.mend(found, size, self._file.size)]
            if self._file.size != size:
                self._file.resize(size)
            self._write_journal(found)
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> int:
        """Bytes that are there."""
        return sum(part.done for part in self.parts)

    @property
    def complete(self) -> bool:
        return all(part.complete for part in self.parts)

    @property
    def contiguous(self) -> int:
        """Bytes that are there from the start without a gap."""
        for part in self.parts:
            if not part.complete:
                return part.at
        return self.size

    def write(self, part: Arriving, data: bytes) -> None:
        self._file.write_at(data, part.at)
        part.done += len(data)
        if part.unsaved >= self._lag:
            self._save(part)

    def read(self, size: int, offset: int) -> bytes:
        return self._file.read_at(size, offset)

    def restart(self, *, whole: bool = False) -> None:
        """Forget what has arrived; nobody may be writing. ``whole``: one part from now on."""
        self._remove_journal()
        self._file.resize(0)
        self._file.resize(self.size)
        self.etag = ""
        parts = (Part(0, 0, self.size),) if whole and self.size else plan.split(self.size)
        self.parts = [Arriving(part) for part in parts]
        self._write_journal([])

    def finish(self) -> None:
        """Give the blob its final name: its bytes have been verified."""
        self._file.commit(self._blobs.path(self.digest))
        self._remove_journal()
        self.parts = []

    def discard(self) -> None:
        """Remove everything."""
        self._remove_journal()
        self.parts = []
        self._blobs.tree.remove(self._file.path)

    def close(self) -> None:
        # A disk that is full takes no journal either; then the last one counts.
        with contextlib.suppress(StoreError):
            for part in self.parts:
                if part.unsaved:
                    self._save(part)
        self._file.close()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _save(self, part: Arriving) -> None:
        path = self._file.path.with_name(f"{self._file.path.name}-{part.part.number}")
        self._blobs.tree.note(path, plan.encode(part.state(self.etag)))

    def _write_journal(self, found: list[Part]) -> None:
        """Bring all of it up to date: a real Ollama takes the parts that it finds for the whole blob."""
        if len(self.parts) == 1 and not found:
            return  # one that is not begun says nothing; most blobs are small
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
    return blobs.root / f"{digest.filename}-partial"


def arrived(blobs: BlobStore, digest: Digest, size: int) -> int:
    """Bytes of an unfinished blob that need not be fetched again."""
    on_disk = disk.regular_size(partial_path(blobs, digest))
    parts = plan.mend(_journal(blobs, digest), size, on_disk or 0)
    return sum(part.completed for part in parts)


def _journal(blobs: BlobStore, digest: Digest) -> list[Part]:
    found = []
    for path in _journal_files(blobs, digest):
        with contextlib.suppress(OSError), path.open("rb") as file:
            part = plan.decode(file.read(_STATE_BYTES))
            if part is not None and path.name.endswith(f"-partial-{part.number}"):
                found.append(part)
    return found


def _journal_files(blobs: BlobStore, digest: Digest) -> list[Path]:
    prefix = f"{digest.filename}-partial-"
    try:
        return [path for path in blobs.root.iterdir() if path.name.startswith(prefix)]
    except FileNotFoundError:
        return []
