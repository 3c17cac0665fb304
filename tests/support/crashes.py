"""Interrupt store operations at every system call, by a killed process or by a power cut.

As a program, ``python -m support.crashes FOLDER [LEAST]`` forks a child for each system call, which dies as by
kill -9, checks the store each time, and prints a JSON object with the number of points. After the named operations
it runs random ones until there were ``LEAST`` points. An inconsistent store ends it with a traceback.

``record`` and ``crash_states`` model a power cut: what was not synced may be missing. A directory change is durable
once that directory was synced; the bytes of a file are durable once the file was synced, before that it may be whole,
half written or empty. Every combination is tried (a random choice where there are too many), at every moment.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from support.ggufs import gguf
from support.stores import check_sound, create, published, tiny

from ollama_nb import disk
from ollama_nb.api.events import Progress
from ollama_nb.api.names import ModelName
from ollama_nb.store.archive import export, import_models
from ollama_nb.store.store import Store

BASE, CHILD, OTHER = (ModelName.parse(text) for text in ("base", "ns/child", "other"))


def prepare(store: Store) -> None:
    tiny(store, "base", system="base's own", template="shared")
    tiny(store, "other", template="shared")
    store.blobs.path(store.blobs.add(b"old and unused")).touch()
    (store.blobs.root / "sha256-123").write_bytes(b"left by another program")
    for path in (store.blobs.root / "sha256-123", store.blobs.path(store.blobs.add(b"old and unused"))):
        os.utime(path, (0, 0))


def create_new(store: Store) -> None:
    create(store, "ns/child", files={"other.gguf": gguf(data=b"\x01" * 64)}, system="new", licenses=("MIT",))


def create_over(store: Store) -> None:
    create(store, "base", base=store.resolve(BASE), system="replaced")


def import_new(store: Store) -> None:
    """Import an archive next to the store, which the first call creates."""
    path = store.root.parent / "archive.tar"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            model = tiny(source := Store(Path(folder)), "ns/child", system="carried", licenses=("MIT", "GPL"))
            export([model], source.blobs, path, report=_silent, cancelled=threading.Event())
    import_models(path, store, as_=None, report=_silent, cancelled=threading.Event())


def _silent(line: Progress) -> None:
    pass


Operation = Callable[[Store], object]

OPERATIONS: dict[str, Operation] = {
    "create": create_new,
    "create over": create_over,
    "copy": lambda store: store.copy(BASE, CHILD),
    "copy over": lambda store: store.copy(BASE, OTHER),
    "import": import_new,
    "delete": lambda store: store.delete(BASE),
    "prune": lambda store: store.prune(),
}


def random_scenario(seed: int) -> tuple[Operation, Operation, bool]:
    """A store with a few models that share layers, an operation on it, and whether the operation may be repeated."""
    chance = random.Random(seed)
    names = chance.sample(["base", "other", "ns/child", "host.org/a/b:q4", "Upper:Tag", "third"], chance.randint(2, 5))
    texts = ["shared", "own", "文字"]

    def parts(chance: random.Random) -> dict[str, Any]:
        found: dict[str, Any] = {key: chance.choice(texts) for key in ("system", "template") if chance.random() < 0.6}
        return found | ({"licenses": tuple(texts[: chance.randint(1, 3)])} if chance.random() < 0.4 else {})

    def make(store: Store) -> None:
        chance = random.Random(seed)
        for number, name in enumerate(names):
            base = store.resolve(ModelName.parse(names[0])) if number and chance.random() < 0.4 else None
            weights = None if base else {"m.gguf": gguf(data=chance.randbytes(32 * chance.randint(1, 40)))}
            create(store, name, base=base, files=weights, **parts(chance))
        for number in range(chance.randint(0, 3)):
            os.utime(store.blobs.path(store.blobs.add(f"unused {number}".encode())), (0, 0))

    first, second = (ModelName.parse(name) for name in chance.sample(names, 2))
    wanted = parts(chance)
    weights = gguf(data=chance.randbytes(32 * chance.randint(1, 40)))
    operations: list[tuple[Operation, bool]] = [
        (lambda store: create(store, "new", files={"m.gguf": weights}, **wanted), True),
        (lambda store: create(store, names[0], files={"m.gguf": weights}, **wanted), True),
        (lambda store: create(store, first.full, base=store.resolve(second), **wanted), False),
        (lambda store: store.copy(first, ModelName("new")), True),
        (lambda store: store.copy(first, second), True),
        (lambda store: store.delete(first), False),
        (lambda store: store.prune(), True),
        (import_new, True),
    ]
    return (make, *chance.choice(operations))


def die_at(step: int, operation: Callable[[Store], None], root: Path) -> bool:
    """Run the operation in a child that dies before system call number ``step``; False if it makes fewer calls."""
    child = os.fork()
    if child == 0:
        left = [step]

        def before(call: str, subject: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os._exit(137)

        disk.before_change_hook = before
        try:
            operation(Store(root))
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 137), f"the operation failed by itself at step {step}"
    return code == 137


def sweep(make: Operation, operation: Operation, folder: Path, *, again: bool = True) -> int:
    """Return the number of points. With ``again``, also repeat the operation on its own result."""
    start = folder / "start"
    make(Store(start))
    done = shutil.copytree(start, folder / "done", copy_function=shutil.copy2)
    operation(Store(done))
    allowed = (published(start), published(done))
    step = 0
    while True:
        root = shutil.copytree(start, folder / "crashed", copy_function=shutil.copy2)
        died = die_at(step, operation, root)
        check_sound(root)
        assert published(root) in allowed, f"half visible after step {step}"
        if not died:
            assert published(root) == allowed[1]
            return step
        if again or published(root) == allowed[0]:
            operation(Store(root))  # the next attempt must succeed
            check_sound(root)
            assert published(root) == allowed[1]
        shutil.rmtree(root)
        step += 1


def main(folder: Path, least: int) -> None:
    """Every named operation, then random ones until ``least`` points were tried."""
    points = {}
    for name, operation in OPERATIONS.items():
        (folder / name).mkdir()
        points[name] = sweep(prepare, operation, folder / name, again=name != "delete")
    seed, found = 0, 0
    while sum(points.values()) + found < least:
        place = folder / str(seed)
        place.mkdir()
        make, operation, again = random_scenario(seed)
        try:
            found += sweep(make, operation, place, again=again)
        except AssertionError as error:
            raise AssertionError(f"random scenario {seed}: {error}") from error
        shutil.rmtree(place)
        seed += 1
    print(json.dumps({"points": points, "random scenarios": seed, "random points": found}))


MOST_PENDING = 6
SAMPLES = 24


@dataclass
class Event:
    """``call`` on ``path``, for a rename also ``target``; ``file`` identifies a created file."""

    call: str
    path: str
    target: str = ""
    file: int = -1
    data: bytes = b""


@dataclass
class Recorder:
    """Replaces the ``os`` module in ``disk``: forwards each call and records it."""

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
    """Run ``work`` and return every change it made below ``root``."""
    recorder = Recorder(root.resolve())
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", recorder)
        work()
    return recorder.log


def crash_states(start: dict[str, bytes], log: list[Event], seed: int = 0) -> Iterator[dict[str, bytes]]:
    """Every state that the tree can have after a power cut at any point of the log."""
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
    """The directory changes that are lost, and how much of each unsynced file is kept."""
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
    """Whether the directory of the changed entry was synced afterwards."""
    at = next(number for number, other in enumerate(done) if other is event)
    place = PurePosixPath(event.target or event.path).parent.as_posix()
    return any(later.call == "sync folder" and later.path == place for later in done[at + 1 :])


def _synced(done: list[Event]) -> set[int]:
    """Files whose bytes are all durable."""
    last_write = {event.file: number for number, event in enumerate(done) if event.call == "write"}
    return {
        file
        for file, at in last_write.items()
        if any(later.call == "sync" and later.file == file for later in done[at + 1 :])
    }


def _replay(
    start: dict[str, bytes], done: list[Event], dropped: list[Event], kept: dict[int, float]
) -> dict[str, bytes] | None:
    """The tree after the durable changes, or None if they are inconsistent (a rename of a file never created)."""
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
