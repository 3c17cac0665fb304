"""Content by digest. A blob is under its final name only if its bytes have that digest."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ollama_nb import disk
from ollama_nb.api.names import Digest
from ollama_nb.api.units import human_bytes
from ollama_nb.errors import BadRequest, NotFound, StoreError

CHUNK = 1 << 20


class BlobStore:
    """The ``blobs`` folder of a model store. Links to blobs are read; they are never written or removed through.

    ``others`` are only read: what one of them has is found, and comes here when something here begins to use it.
    """

    def __init__(self, root: Path, others: Sequence[BlobStore] = ()) -> None:
        self.root = root
        self.tree = disk.Tree(root)
        self._others = others

    def path(self, digest: Digest) -> Path:
        """Where the blob belongs in this store."""
        return self.root / digest.filename

    def find(self, digest: Digest) -> Path:
        """Where the blob can be read; where it belongs, if it is nowhere."""
        here = self.path(digest)
        if self._others and disk.regular_size(here) is None:
            return next((other.path(digest) for other in self._others if other.has(digest)), here)
        return here

    def has(self, digest: Digest) -> bool:
        return self.size(digest) is not None

    def size(self, digest: Digest) -> int | None:
        """Bytes, or None when the blob is not there."""
        return disk.regular_size(self.find(digest))

    def read(self, digest: Digest, limit: int) -> bytes:
        """The whole blob. Raises NotFound when it is not there, StoreError when it has more than ``limit`` bytes."""
        size = self.size(digest)
        if size is None:
            raise NotFound(f'blob "{digest}" not found')
        if size > limit:
            raise StoreError(f'blob "{digest}" has {size} bytes, more than the {limit} allowed here')
        path = self.find(digest)
        with disk.store_errors("read", path):
            return path.read_bytes()

    def add(self, data: bytes) -> Digest:
        """Store bytes; a blob that is already there is only marked as used now."""
        digest = digest_of(data)
        if self.size(digest) == len(data) and self.touch(digest):
            return digest
        with self.writer() as writer:
            writer.write(data)
            return writer.commit(digest)

    def add_file(self, path: Path) -> Digest:
        """Store a copy of a file, without taking room where the file system can share its bytes."""
        with disk.store_errors("read", path), path.open("rb") as source, self.tree.temp() as temp:
            digest = self._copy_into(temp, source)
            self._publish(temp, digest)
            return digest

    def add_generated(self, fill: Callable[[Path], None], made: Callable[[], None]) -> Digest:
        """Store what ``fill`` writes into the unfinished file of the path that it gets, in whatever process.

        ``made`` is called before the result is hashed. Nothing is left when either raises.
        """
        with self.tree.temp() as temp:
            fill(temp.path)
            made()
            with disk.store_errors("read", temp.path), temp.path.open("rb") as file:
                digest = Digest(hashlib.file_digest(file, "sha256").hexdigest())
            self._publish(temp, digest)
            return digest

    def _publish(self, temp: disk.TempFile, digest: Digest) -> None:
        path = self.path(digest)
        if disk.regular_size(path) is None or not self.tree.touch(path):
            temp.commit(self.tree, path)

    def writer(self) -> BlobWriter:
        """A blob that arrives piece by piece."""
        return BlobWriter(self)

    def require_space(self, size: int) -> None:
        """Raises StoreError when the disk has no room for ``size`` bytes."""
        self.tree.make()
        with disk.store_errors("look at the disk of", self.root):
            free = shutil.disk_usage(self.root).free
        if free < size:
            raise StoreError(f"not enough disk space for the model: need {human_bytes(size)}, have {human_bytes(free)}")

    def touch(self, digest: Digest) -> bool:
        """Mark a blob as used now, which keeps every clean-up away for an hour; False when it is not there.

        One that only another store has is copied from there, if its bytes are right.
        """
        return self.tree.touch(self.path(digest)) or any(self._adopt(other.path(digest)) for other in self._others)

    def _adopt(self, path: Path) -> bool:
        """Copy another store's blob, without taking room where the file system can share it."""
        size = disk.regular_size(path)
        if size is None:
            return False
        with disk.store_errors("copy", path), path.open("rb") as source, self.tree.temp() as temp:
            digest = self._copy_into(temp, source)
            if digest.filename != path.name:
                return False
            temp.commit(self.tree, self.path(digest))
        return True

    def _copy_into(self, temp: disk.TempFile, source: BinaryIO) -> Digest:
        """Give a temporary file the bytes of a file, and say which they are."""
        if not temp.clone(source):
            self.require_space(os.fstat(source.fileno()).st_size)
            while chunk := source.read(CHUNK):
                temp.write(chunk)
        with temp.path.open("rb") as copy:
            return Digest(hashlib.file_digest(copy, "sha256").hexdigest())

    def remove(self, digest: Digest) -> bool:
        return self.tree.remove(self.path(digest))

    def digests(self) -> Iterator[Digest]:
        """Every finished blob."""
        with disk.store_errors("read the folder", self.root):
            names = sorted(entry.name for entry in self.root.iterdir()) if self.root.exists() else []
        for name in names:
            digest = digest_in_name(name)
            if digest is not None:
                yield digest


class BlobWriter:
    """Bytes on their way to becoming a blob. Leaving its ``with`` block without ``commit`` removes them."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._temp = store.tree.temp()
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def path(self) -> Path:
        """The unfinished file, for a look before ``commit``."""
        return self._temp.path

    @property
    def digest(self) -> Digest:
        """Of the bytes so far."""
        return Digest(self._hash.hexdigest())

    def write(self, data: bytes) -> None:
        self._temp.write(data)
        self._hash.update(data)
        self.size += len(data)

    def commit(self, expected: Digest | None) -> Digest:
        """Give the blob its name. Raises BadRequest, and stores nothing, when its digest is not the expected one."""
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
        self._temp.abort()

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def digest_in_name(name: str) -> Digest | None:
    """The digest that a file of the ``blobs`` folder is named after; None for partial and temporary files."""
    try:
        digest = Digest.parse(name)
    except BadRequest:
        return None
    return digest if digest.filename == name else None
