"""A record of answered rows on disk, from which an interrupted run resumes, in this kernel or another one.

A ledger is an append-only file of JSON lines, one per answered row; a line is valid once its line feed is written.
A file lock admits one process at a time. Prompts are stored as hashes only, answers in plain text, with mode 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from ollama_nb.errors import Busy, OllamaError

if sys.platform != "win32":
    import fcntl

KEPT_SECONDS = 30 * 86_400.0  # ledgers that are not written to for this time are removed
_FINISHED = b'{"finished":true}\n'

Entry = dict[str, Any]
"""``key`` of a task, ``value`` (the answer: text or base64), ``reason`` (its finish reason)."""


class Record(Protocol):
    """The answers of a run by task key."""

    done: dict[str, Entry]

    def add(self, entries: list[Entry]) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class MemoryRecord:
    """A record that lasts for one run."""

    def __init__(self) -> None:
        self.done: dict[str, Entry] = {}

    def add(self, entries: list[Entry]) -> None:
        self.done.update((entry["key"], entry) for entry in entries)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class Ledger(MemoryRecord):
    """A record in a file. A later run reuses the answers of a finished run only if the job is ``deterministic``.

    Raises Busy if another process uses the file, OllamaError if it cannot be read or written.
    """

    def __init__(self, folder: Path, name: str, *, deterministic: bool) -> None:
        super().__init__()
        self._deterministic = deterministic
        self.path = folder / f"{name}.jsonl"
        with _described_errors(self.path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_old(folder)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _lock(self._file)
            with _described_errors(self.path):
                self._read()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, entries: list[Entry]) -> None:
        lines = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n" for entry in entries]
        self._write("".join(lines).encode("utf-8", "replace"))
        super().add(entries)

    def finish(self) -> None:
        """Mark the run as complete: the next run of a non-deterministic job starts from the beginning."""
        if not self._deterministic:
            self._write(_FINISHED)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def _read(self) -> None:
        with self.path.open("rb") as file:
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # the rest is an incomplete line
        if whole.endswith(_FINISHED):
            whole = b""
        if len(whole) < len(data):
            os.ftruncate(self._file, len(whole))
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self.done[entry["key"]] = entry

    def _write(self, data: bytes) -> None:
        with _described_errors(self.path):
            while data:
                data = data[os.write(self._file, data) :]


def hash_of(*parts: Any) -> str:
    """The hash that identifies a run, or a task in it: 32 hexadecimal digits."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def remove_old(folder: Path) -> None:
    """Remove the ledgers that were last written to more than ``KEPT_SECONDS`` ago."""
    for path in folder.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()


def _lock(file: int) -> None:
    """Lock the file until it is closed. File systems without locks are tolerated."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(
            "another kernel is processing the same rows: wait until it has finished, then its answers are reused here; "
            "`ledger=False` processes them here as well"
        ) from None
    except OSError:
        pass


@contextlib.contextmanager
def _described_errors(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise OllamaError(f"the ledger {path}: {error.strerror or error}; `ledger=False` runs without one") from None
