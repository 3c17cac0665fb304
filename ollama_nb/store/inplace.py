"""Files of a model store that are written where they lie, over many runs of the program."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ollama_nb import disk


class InPlace:
    """An unfinished file whose pieces arrive in any order. Several threads may read and write; one closes it."""

    def __init__(self, tree: disk.Tree, path: Path) -> None:
        """Open it, or make it if it is not there; a link of that name is refused."""
        self._tree = tree
        self.path = path
        with disk.clear_errors("write", path), tree.folder_of(path, create=True) as folder:
            disk.step("create", path.name)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path.name, flags, 0o644, dir_fd=folder)

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def lock(self) -> bool:
        """Keep others of ours away until ``close``; False when one has it, or has just given it its final name."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._file), os.lstat(self.path))
        except OSError:
            return False

    def resize(self, size: int) -> None:
        """New bytes are zeros and take no room yet."""
        with disk.clear_errors("write", self.path):
            disk.step("truncate", self.path.name)
            os.ftruncate(self._file, size)

    def write_at(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        with disk.clear_errors("write", self.path):
            while view:
                disk.step("write", self.path.name)
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written

    def read_at(self, size: int, offset: int) -> bytes:
        with disk.clear_errors("read", self.path):
            return os.pread(self._file, size, offset)

    def commit(self, path: Path) -> None:
        """Bring the bytes to the disk, then give them their final name in the same folder."""
        with disk.clear_errors("write", path):
            disk.fsync(self._file, self.path.name)
        self._tree.rename(self.path, path.name)

    def close(self) -> None:
        """Nothing happens the second time."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
