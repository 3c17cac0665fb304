"""A server on this machine whose models folder this user can write: files go there directly, without an upload.

Proof first: a blob of random bytes is put into the folder, and only a server that then says it has that blob reads the
same folder. No path is ever sent: the server knows blobs by their digests only, however they came.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

from ollama_nb.api.names import Digest
from ollama_nb.client.client import Client
from ollama_nb.disk import TEMP_PREFIX
from ollama_nb.errors import OllamaError, StoreError
from ollama_nb.net import is_loopback_url
from ollama_nb.settings import Settings
from ollama_nb.store.blobs import CHUNK, BlobStore

Report = Callable[[int, int], None]


class SharedStore:
    """The blobs of a server's own folder."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    @classmethod
    def find(cls, client: Client, models: Path | None = None) -> SharedStore | None:
        """The store that ``client``'s server has in common with this process; None for any other server.

        ``models``: where to look (default: as this user's settings say).
        """
        if not is_loopback_url(client.url):
            return None
        blobs = BlobStore((Settings.from_env().models if models is None else models) / "blobs")
        if not blobs.root.is_dir():
            return None
        with contextlib.suppress(OllamaError):  # a folder that cannot be written is nobody's in common
            proof = blobs.add(secrets.token_bytes(32))
            try:
                return cls(blobs) if client.has_blob(str(proof)) else None
            finally:
                blobs.remove(proof)
        return None

    def take(self, path: Path, digest: str, report: Report, *, link: bool = False) -> None:
        """Make a blob of a file: its bytes shared where the file system can do that, else copied.

        ``link``: a second name for the same file, so that changing it there would change it here. Raises StoreError
        when the file has changed since its digest was taken, or cannot be linked.
        """
        wanted = Digest.parse(digest)
        if link:
            self._link(path, wanted)
        elif not self._clone(path, wanted):
            self._copy(path, wanted, report)

    def _clone(self, path: Path, wanted: Digest) -> bool:
        with path.open("rb") as source, self._blobs.tree.temp() as temp:
            if not temp.clone(source):
                return False
            _check(temp.path, wanted, path)
            temp.commit(self._blobs.tree, self._blobs.path(wanted))
        return True

    def _copy(self, path: Path, wanted: Digest, report: Report) -> None:
        size = path.stat().st_size
        self._blobs.require_space(size)
        with path.open("rb") as source, self._blobs.writer() as writer:
            while chunk := source.read(CHUNK):
                writer.write(chunk)
                report(writer.size, size)
            if writer.digest != wanted:
                raise _changed(path)
            writer.commit(wanted)

    def _link(self, path: Path, wanted: Digest) -> None:
        tree, temporary = self._blobs.tree, self._blobs.root / f"{TEMP_PREFIX}{secrets.randbelow(10**18)}"
        tree.link(path, temporary)
        try:
            _check(temporary, wanted, path)
            tree.rename(temporary, wanted.filename)
        finally:
            tree.remove(temporary)


def _check(made: Path, wanted: Digest, source: Path) -> None:
    with made.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != wanted.hex:
            raise _changed(source)


def _changed(path: Path) -> StoreError:
    return StoreError(f"{path.name} has changed while it was read; try again")
