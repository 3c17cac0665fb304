"""Lock files that serialize transfers over all threads and processes of a user, and that publish their progress.

The holder writes its progress to the lock file, where waiting threads read it. When the holder ends, the next waiter
resumes the transfer. Lock files are in this program's state folder, never in a model store.
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

_LENGTH = 8  # bytes of the progress at the start of a lock file
MAX_RESULT = 4096  # bytes of the result after it


class HeldLock:
    """A lock that this thread holds."""

    def __init__(self, file: int) -> None:
        self._file = file

    def publish_progress(self, done: int) -> None:
        """Publish the number of transferred bytes to the waiters."""
        self._write(done.to_bytes(_LENGTH, "little"), 0)

    def publish_result(self, note: str) -> None:
        """Publish a text that the waiters can read after the lock is released."""
        self._write(note.encode()[:MAX_RESULT], _LENGTH)

    def _write(self, data: bytes, offset: int) -> None:
        with contextlib.suppress(OSError):  # progress is lost on a full disk; the transfer continues
            os.pwrite(self._file, data, offset)


class TransferLock:
    """The lock of one transfer. ``key`` consists of letters, digits and dashes. Use one object per ``acquire``."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / f"{key}.lock"
        self._seen: int | None = None

    @contextlib.contextmanager
    def acquire(self, on_progress: ProgressCallback, cancelled: threading.Event) -> Iterator[HeldLock]:
        """Wait for the lock and hold it until the block ends. Raises Cancelled.

        ``on_progress`` receives the progress of the current holder while this waits.
        """
        try:
            while True:
                with self._try_acquire() as held:
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
        """The text that the previous holder published while we waited."""
        return self._read(_LENGTH, MAX_RESULT).decode("utf-8", "replace")

    @contextlib.contextmanager
    def _try_acquire(self) -> Iterator[HeldLock | None]:
        """Try to take the lock until the block ends. Yields None if it is held elsewhere."""
        with disk.store_errors("write", self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        held = False
        try:
            held = self._try_lock(file)
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

    def _try_lock(self, file: int) -> bool:
        """Return False if the lock is held, or if its last holder removed the file before we locked it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            self._seen = file  # kept open, so that the result can be read after the holder has removed the file
            return False
        except OSError:
            return True  # a file system without locks: continue without one
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def _read(self, offset: int, size: int) -> bytes:
        return b"" if self._seen is None else os.pread(self._seen, size, offset)
