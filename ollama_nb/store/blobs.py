"""The blob store: files named after their SHA-256 digest. A blob gets its name after its digest was verified."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import BinaryIO

from ollama_nb import disk
from ollama_nb.api.names import Digest
from ollama_nb.api.units import human_bytes
from ollama_nb.errors import BadRequest, Cancelled, NotFound, StoreError

CHUNK = 1 << 20  # bytes that are read, hashed and written at a time


class BlobStore:
    """The ``blobs`` folder of a model store. Symbolic links to blobs are read, but never written or removed through.

    ``others`` are read-only stores: their blobs are found, and are copied here when a model of this store uses them.
    """

    def __init__(self, root: Path, others: Sequence[BlobStore] = ()) -> None:
        self.root = root
        self.tree = disk.Tree(root)
        self._others = others

    def path(self, digest: Digest) -> Path:
        """Return the path of a blob in this store, whether it exists or not."""
        return self.root / digest.filename

    def find(self, digest: Digest) -> Path:
        """Return the path of a blob in this or another store; the path in this store if no store has it."""
        here = self.path(digest)
        if self._others and disk.regular_size(here) is None:
            return next((other.path(digest) for other in self._others if other.has(digest)), here)
        return here

    def has(self, digest: Digest) -> bool:
        """Return whether this or another store has the blob."""
        return self.size(digest) is not None

    def size(self, digest: Digest) -> int | None:
        """Return the size in bytes, or None if no store has the blob."""
        return disk.regular_size(self.find(digest))

    def read(self, digest: Digest, limit: int) -> bytes:
        """Read a blob. Raises NotFound if it does not exist, StoreError if it is larger than ``limit`` bytes."""
        size = self.size(digest)
        if size is None:
            raise NotFound(f'blob "{digest}" not found')
        if size > limit:
            raise StoreError(f'blob "{digest}" has {size} bytes, more than the limit of {limit} bytes')
        path = self.find(digest)
        with disk.store_errors("read", path, reading=True):
            return path.read_bytes()

    def add(self, data: bytes) -> Digest:
        """Store bytes. A blob that exists is only touched."""
        digest = digest_of(data)
        if self.size(digest) == len(data) and self.touch(digest):
            return digest
        with self.writer() as writer:
            writer.write(data)
            return writer.commit(digest)

    def add_file(self, path: Path, cancelled: Event | None = None) -> Digest:
        """Store a copy of a file, as a copy-on-write clone where the file system supports that. Raises Cancelled."""
        with disk.store_errors("read", path, reading=True), disk.open_regular(path) as source, self.tree.temp() as temp:
            digest = self._copy_into(temp, source, cancelled)
            self._publish(temp, digest)
            return digest

    def add_generated(
        self, fill: Callable[[Path], None], made: Callable[[], None], cancelled: Event | None = None
    ) -> Digest:
        """Store the file that ``fill`` writes at the given path, in this or in another process.

        ``made`` is called before the result is hashed. If either raises, or on Cancelled, the file is removed.
        """
        with self.tree.temp() as temp:
            fill(temp.path)
            made()
            with disk.store_errors("read", temp.path, reading=True), temp.path.open("rb") as file:
                digest = hash_file(file, cancelled)
            self._publish(temp, digest)
            return digest

    def _publish(self, temp: disk.TempFile, digest: Digest) -> None:
        path = self.path(digest)
        if disk.regular_size(path) is None or not self.tree.touch(path):
            temp.commit(self.tree, path)

    def writer(self) -> BlobWriter:
        """Return a writer for a blob that is written in pieces."""
        return BlobWriter(self)

    def require_space(self, size: int) -> None:
        """Raise StoreError if the disk has less than ``size`` bytes of free space."""
        self.tree.make()
        with disk.store_errors("look up the free space of", self.root, reading=True):
            free = shutil.disk_usage(self.root).free
        if free < size:
            raise StoreError(f"not enough disk space for the model: need {human_bytes(size)}, have {human_bytes(free)}")

    def touch(self, digest: Digest, cancelled: Event | None = None) -> bool:
        """Set the time of a blob to now, which protects it from pruning for an hour; False if it does not exist.

        A blob that only another store has is copied from there, after its digest was verified. Raises Cancelled.
        """
        return self.tree.touch(self.path(digest)) or any(
            self._copy_from(other.path(digest), cancelled) for other in self._others
        )

    def _copy_from(self, path: Path, cancelled: Event | None) -> bool:
        """Copy a blob of another store, as a copy-on-write clone where possible."""
        size = disk.regular_size(path)
        if size is None:
            return False
        with disk.store_errors("copy", path), disk.open_regular(path) as source, self.tree.temp() as temp:
            digest = self._copy_into(temp, source, cancelled)
            if digest.filename != path.name:
                return False
            temp.commit(self.tree, self.path(digest))
        return True

    def _copy_into(self, temp: disk.TempFile, source: BinaryIO, cancelled: Event | None) -> Digest:
        """Copy ``source`` into a temporary file and return the digest of the copy."""
        if not temp.clone(source):
            self.require_space(os.fstat(source.fileno()).st_size)
            for chunk in _chunks(source, cancelled):
                temp.write(chunk)
        with temp.path.open("rb") as copy:
            return hash_file(copy, cancelled)

    def remove(self, digest: Digest) -> bool:
        """Remove a blob of this store. Returns False if it does not exist."""
        return self.tree.remove(self.path(digest))

    def digests(self) -> Iterator[Digest]:
        """Yield the digest of every complete blob, sorted."""
        with disk.store_errors("read the folder", self.root, reading=True):
            names = sorted(entry.name for entry in self.root.iterdir()) if self.root.exists() else []
        for name in names:
            digest = digest_in_name(name)
            if digest is not None:
                yield digest


class BlobWriter:
    """A blob that is being written. Leaving the ``with`` block without ``commit`` removes it."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._temp = store.tree.temp()
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def path(self) -> Path:
        """The unfinished file, for checks before ``commit``."""
        return self._temp.path

    @property
    def digest(self) -> Digest:
        """The digest of the bytes written so far."""
        return Digest(self._hash.hexdigest())

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._temp.write(data)
        self._hash.update(data)
        self.size += len(data)

    def commit(self, expected: Digest | None) -> Digest:
        """Give the blob its name. If the digest differs from ``expected``, discard it and raise BadRequest."""
        digest = self.digest
        if expected is not None and digest != expected:
            self.abort()
            raise BadRequest(f'digest mismatch, expected "{expected}", got "{digest}"')
        path = self._store.path(digest)
        if disk.regular_size(path) == self.size and self._store.tree.touch(path):
            self.abort()
        else:
            self._temp.commit(self._store.tree, path)
        return digest

    def abort(self) -> None:
        """Remove the unfinished file. Does nothing after ``commit``."""
        self._temp.abort()

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()


def hash_file(file: BinaryIO, cancelled: Event | None = None) -> Digest:
    """Return the SHA-256 digest of the rest of a file. Raises Cancelled."""
    found = hashlib.sha256()
    for chunk in _chunks(file, cancelled):
        found.update(chunk)
    return Digest(found.hexdigest())


def _chunks(file: BinaryIO, cancelled: Event | None) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        yield chunk


def digest_of(data: bytes) -> Digest:
    """Return the SHA-256 digest of ``data``."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_in_name(name: str) -> Digest | None:
    """Parse the name of a file in ``blobs`` into a digest; None for unfinished and temporary files."""
    try:
        digest = Digest.parse(name)
    except BadRequest:
        return None
    return digest if digest.filename == name else None
