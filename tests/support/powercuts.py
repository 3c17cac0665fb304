"""What the disk may hold after a power cut: every system call of ``disk`` is recorded, then lost in all legal ways.

The model: what was not synced may be missing. A change of a folder lasts once that folder was synced; the bytes of a
file last once it was synced, before that it may be whole, half there or empty. Everything that may be missing is
dropped in every combination (a random choice of them where there are too many), at every moment of an operation.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from ollama_nb import disk

MOST_PENDING = 6
SAMPLES = 24


@dataclass
class Event:
    """``call`` on ``path``; for a rename also its ``target``; ``file`` numbers the files that were created."""

    call: str
    path: str
    target: str = ""
    file: int = -1
    data: bytes = b""


@dataclass
class Recorder:
    """Stands in for the ``os`` module of ``disk``: does what it is asked, and writes it down."""

    root: Path
    log: list[Event] = field(default_factory=list)
    _files: dict[int, int] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = os.open(path, flags, mode, dir_fd=dir_fd)
        self._files.pop(descriptor, None)
        if flags & os.O_CREAT:
            self._files[descriptor] = len(self.log)
            self.log.append(Event("create", self._path(path, dir_fd), file=len(self.log)))
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        done = os.write(descriptor, data)
        self.log.append(Event("write", "", file=self._files[descriptor], data=bytes(data[:done])))
        return done

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        if descriptor in self._files:
            self.log.append(Event("sync", "", file=self._files[descriptor]))
        else:
            self.log.append(Event("sync folder", self._of(descriptor)))

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        os.mkdir(path, mode, dir_fd=dir_fd)
        self.log.append(Event("mkdir", self._path(path, dir_fd)))

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        os.unlink(path, dir_fd=dir_fd)
        self.log.append(Event("unlink", self._path(path, dir_fd)))

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        os.rmdir(path, dir_fd=dir_fd)
        self.log.append(Event("rmdir", self._path(path, dir_fd)))

    def rename(self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        os.rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self.log.append(Event("rename", self._path(old, src_dir_fd), self._path(new, dst_dir_fd)))

    def _path(self, path: Any, folder: int | None) -> str:
        place = Path(path) if folder is None else self.root / self._of(folder) / path
        return place.relative_to(self.root).as_posix() if place.is_relative_to(self.root) else f"../{place.name}"

    def _of(self, descriptor: int) -> str:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        return place.relative_to(self.root).as_posix() if place.is_relative_to(self.root) else "..outside"


def record(root: Path, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Do the work; return every change that it made below ``root``."""
    recorder = Recorder(root.resolve())
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", recorder)
        work()
    return recorder.log


def crash_states(start: dict[str, bytes], log: list[Event], seed: int = 0) -> Iterator[dict[str, bytes]]:
    """Every content that the tree may have after a power cut at any moment of the log."""
    chance = random.Random(seed)
    for moment in range(len(log) + 1):
        done = log[:moment]
        changes = [event for event in done if event.call in ("create", "rename", "unlink", "mkdir", "rmdir")]
        pending = [event for event in changes if not _lasts(event, done)]
        unsynced = sorted({event.file for event in done if event.call == "write"} - _synced(done))
        for dropped, kept in _combinations(pending, unsynced, chance):
            state = _replay(start, done, dropped, dict(zip(unsynced, kept, strict=True)))
            if state is not None:
                yield state


def _combinations(
    pending: list[Event], unsynced: list[int], chance: random.Random
) -> Iterator[tuple[list[Event], tuple[float, ...]]]:
    """What is dropped of the changes of folders, and how much is kept of each file that was not synced."""
    shares = [1.0, 0.5, 0.0]
    if len(pending) <= MOST_PENDING and len(unsynced) <= 2:
        for mask in itertools.product((False, True), repeat=len(pending)):
            dropped = [event for event, drop in zip(pending, mask, strict=True) if drop]
            for kept in itertools.product(shares, repeat=len(unsynced)):
                yield dropped, kept
        return
    for number in range(SAMPLES):
        rate = (0.1, 0.5, 0.9)[number % 3]
        yield (
            [event for event in pending if chance.random() < rate],
            tuple(chance.choice(shares) for _ in unsynced),
        )


def _lasts(event: Event, done: list[Event]) -> bool:
    """Whether the folder of its outcome was synced afterwards."""
    at = next(number for number, other in enumerate(done) if other is event)
    place = PurePosixPath(event.target or event.path).parent.as_posix()
    return any(later.call == "sync folder" and later.path == place for later in done[at + 1 :])


def _synced(done: list[Event]) -> set[int]:
    """Files whose every byte is on the disk."""
    last_write = {event.file: number for number, event in enumerate(done) if event.call == "write"}
    return {
        file
        for file, at in last_write.items()
        if any(later.call == "sync" and later.file == file for later in done[at + 1 :])
    }


def _replay(
    start: dict[str, bytes], done: list[Event], dropped: list[Event], kept: dict[int, float]
) -> dict[str, bytes] | None:
    """The tree after what lasted; None where that is no state of a tree (a name of a file that never came to be)."""
    files: dict[str, int | bytes] = dict(start)
    contents: dict[int, bytearray] = {}
    gone = {id(event) for event in dropped}
    for event in done:
        if event.call == "write":
            contents.setdefault(event.file, bytearray()).extend(event.data)
        if id(event) in gone:
            continue
        if event.call == "create":
            files[event.path] = event.file
        elif event.call == "unlink":
            files.pop(event.path, None)
        elif event.call == "rename":
            if event.path not in files:
                return None
            moved = files.pop(event.path)
            if not event.target.startswith(".."):
                files[event.target] = moved
    lost = tuple(f"{event.path}/" for event in dropped if event.call == "mkdir")
    state = {}
    for name, content in files.items():
        if lost and name.startswith(lost):
            continue
        if isinstance(content, int):
            whole = bytes(contents.get(content, b""))
            content = whole[: int(len(whole) * kept.get(content, 1.0))]
        state[name] = content
    return state
