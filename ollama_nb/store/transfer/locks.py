"""One transfer of a thing at a time, over all threads and processes of a user: a lock file that tells how far it is.

Who finds the lock taken looks on; when it comes free, whoever is first goes on where the other one stopped. The locks
lie in our own folder, never in a model store.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from ollama_nb import disk
from ollama_nb.errors import Cancelled
from ollama_nb.store.transfer.pace import PROGRESS_INTERVAL, ProgressCallback

_LENGTH = 8
MAX_RESULT = 4096


class HeldLock:
    """The lock, held."""

    def __init__(self, file: int) -> None:
        self._file = file

    def publish_progress(self, done: int) -> None:
        """Tell those who wait how many bytes are there."""
        self._write(done.to_bytes(_LENGTH, "little"), 0)

    def publish_result(self, note: str) -> None:
        """Leave a word for those who have been waiting."""
        self._write(note.encode()[:MAX_RESULT], _LENGTH)

    def _write(self, data: bytes, offset: int) -> None:
        with contextlib.suppress(OSError):  # a full disk leaves others uninformed, and stops nothing
            os.pwrite(self._file, data, offset)


class TransferLock:
    """Everybody who wants one thing; ``key`` is made of letters, digits and dashes. For one ``turn``."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / f"{key}.lock"
        self._seen: int | None = None

    @contextlib.contextmanager
    def acquire(self, on_progress: ProgressCallback, cancelled: threading.Event) -> Iterator[HeldLock]:
        """Wait for the lock, and hold it until the block ends. Raises Cancelled.

        ``on_progress`` is told meanwhile how many bytes the holder has.
        """
        try:
            while True:
                with self._try() as held:
                    if held is not None:
                        yield held
                        return
                on_progress(int.from_bytes(self._read(0, _LENGTH), "little"))
                if cancelled.wait(PROGRESS_INTERVAL):
                    raise Cancelled
        finally:
            self._close()

    @property
    def result(self) -> str:
        """What a holder left for us while we waited."""
        return self._read(_LENGTH, MAX_RESULT).decode("utf-8", "replace")

    @contextlib.contextmanager
    def _try(self) -> Iterator[HeldLock | None]:
        """The lock until the block ends, or None when somebody else holds it."""
        with disk.store_errors("write", self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        held = False
        try:
            held = self._lock(file)
            yield HeldLock(file) if held else None
        finally:
            if held:
                self._path.unlink(missing_ok=True)
            if held or file != self._seen:
                os.close(file)

    def _close(self) -> None:
        if self._seen is not None:
            os.close(self._seen)
            self._seen = None

    def _lock(self, file: int) -> bool:
        """False when it is taken, or when the file was removed by its last holder before we had it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            self._seen = file  # kept open: its holder's last word can be read after its end
            return False
        except OSError:
            return True  # a file system without locks: go on without
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def _read(self, offset: int, size: int) -> bytes:
        return b"" if self._seen is None else os.pread(self._seen, size, offset)
