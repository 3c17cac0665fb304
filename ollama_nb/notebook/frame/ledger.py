"""What rows of a table were answered, on disk: a run that was stopped goes on where it was, in this kernel or the next.

Rule: an append-only file of JSON lines, one per answered row; a line counts when its line feed is there. One process
at a time writes a ledger. Prompts are kept as hashes only; answers as they are, readable by their user alone.
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

KEPT_SECONDS = 30 * 86_400.0
_FINISHED = b'{"finished":true}\n'

Entry = dict[str, Any]
"""``key`` of a row, ``value`` that it was answered with (text or base64), ``reason`` why the answer ended."""


class Record(Protocol):
    """Where answers are kept."""

    done: dict[str, Entry]

    def add(self, entries: list[Entry]) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class Memory:
    """Keeps answers for this run only."""

    def __init__(self) -> None:
        self.done: dict[str, Entry] = {}

    def add(self, entries: list[Entry]) -> None:
        self.done.update((entry["key"], entry) for entry in entries)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class Ledger(Memory):
    """``repeatable``: whether a finished run's answers hold for the next run, too; else it starts anew.

    Raises Busy when another process works on it, OllamaError when it cannot be read or written.
    """

    def __init__(self, folder: Path, name: str, *, repeatable: bool) -> None:
        super().__init__()
        self._repeatable = repeatable
        self.path = folder / f"{name}.jsonl"
        with _worded(self.path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            forget_old(folder)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _lock(self._file)
            with _worded(self.path):
                self._read()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, entries: list[Entry]) -> None:
        lines = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n" for entry in entries]
        self._write("".join(lines).encode("utf-8", "replace"))
        super().add(entries)

    def finish(self) -> None:
        """Every row is answered: what cannot be repeated starts anew the next time."""
        if not self._repeatable:
            self._write(_FINISHED)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def _read(self) -> None:
        with self.path.open("rb") as file:
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # what follows was cut off by a kill
        if whole.endswith(_FINISHED):
            whole = b""
        if len(whole) < len(data):
            os.ftruncate(self._file, len(whole))
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self.done[entry["key"]] = entry

    def _write(self, data: bytes) -> None:
        with _worded(self.path):
            while data:
                data = data[os.write(self._file, data) :]


def name_of(*parts: Any) -> str:
    """The hash of what makes a run, or a row, what it is."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def forget_old(folder: Path) -> None:
    """Remove ledgers that nobody has written to for a month."""
    for path in folder.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()


def _lock(file: int) -> None:
    """Hold the file as long as this process lives; where the file system knows no locks, do without."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(
            "another kernel is at work on the same rows: wait for it, then its answers count here, too; "
            "`ledger=False` does the work twice"
        ) from None
    except OSError:
        pass


@contextlib.contextmanager
def _worded(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise OllamaError(f"the ledger {path}: {error.strerror or error}; `ledger=False` does without") from None
