"""A blob put together from pieces, each checked by its digest. What has arrived outlives a kill; nothing else does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

from ollama_nb import disk
from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, NotFound, StoreError
from ollama_nb.store.blobs import CHUNK, BlobStore
from ollama_nb.store.inplace import InPlace
from ollama_nb.store.pieces import PackedFile, Piece


def joined_path(blobs: BlobStore, digest: Digest) -> Path:
    """Beside the blobs, under a name that clean-up knows as unfinished."""
    return blobs.root / f"{digest.filename}-pieces"


class Joined:
    """The unfinished blob, for one holder at a time. Pieces that were sound when it was left are there again.

    Raises StoreError when somebody else is at it.
    """

    def __init__(self, blobs: BlobStore, file: PackedFile) -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self.path = joined_path(blobs, file.digest)
        self.pieces = 0
        self.size = 0
        self._file = InPlace(blobs.tree, self.path)
        try:
            if not self._file.lock():
                raise StoreError(f"{file.name} is being fetched already, by another pull: try again when it has ended")
            for piece in file.pieces:
                if not self._take_over(piece):
                    break
            self._file.resize(self.size)
        except BaseException:
            self._file.close()
            raise

    @property
    def digest(self) -> Digest:
        """Of the bytes so far."""
        return Digest(self._hash.hexdigest())

    def write(self, data: bytes) -> None:
        self._file.write_at(data, self.size)
        self._hash.update(data)
        self.size += len(data)

    def commit(self) -> None:
        """Give the blob its name; the caller has compared its digest."""
        self._file.commit(self._blobs.path(self.digest))

    def _take_over(self, piece: Piece) -> bool:
        """Whether this piece is there, whole and right."""
        hashed, whole, end = hashlib.sha256(), self._hash.copy(), self.size + piece.size
        at = self.size
        while at < end and (chunk := self._file.read_at(min(CHUNK, end - at), at)):
            hashed.update(chunk)
            whole.update(chunk)
            at += len(chunk)
        if at < end or hashed.hexdigest() != piece.digest.hex:
            return False
        self._hash, self.size = whole, end
        self.pieces += 1
        return True

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if not self.size or isinstance(error, BadRequest | NotFound):  # trying again would not help
                self._blobs.tree.remove(self.path)
        finally:
            self._file.close()


def arrived(blobs: BlobStore, digest: Digest) -> int:
    """Bytes that an earlier try may have left."""
    return disk.regular_size(joined_path(blobs, digest)) or 0
