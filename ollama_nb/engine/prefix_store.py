"""The prefix cache on disk: file format, integrity and eviction.

One folder holds the prefixes of all models; only its owner can read it, and several processes may share it. A file has
a magic number, the length of the header, a JSON header (what made it), the tokens (int32), the state as llama.cpp
returned it, and an HMAC-SHA-256 over all of that with a key stored in the folder. A file that differs in a single byte
or was made by another build is removed and treated as missing, so that native code only reads bytes that this program
wrote. Missing permissions and full disks disable the cache but never fail a request.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
import secrets
import shutil
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ollama_nb.disk import Tree
from ollama_nb.engine.llama import Bytes
from ollama_nb.engine.messages import Adapters
from ollama_nb.errors import StoreError

MAX_AGE = 7 * 86_400.0  # seconds since the last use of a prefix; older ones are removed
ABANDONED_AFTER = 3600.0  # seconds after which an unfinished file has no writer any more
MIN_FREE_DISK = 256 << 20  # bytes that are left free

MAGIC = b"nbprefix"
TEMPORARY = ".part-"  # start of the name of an unfinished file
_HEAD = struct.Struct("<8sI")
_MAC_BYTES = 32
_MAX_HEADER = 4096
_MAX_TOKENS = 1 << 24
_READ_CHUNK, _WRITE_CHUNK = 4 << 20, 512 << 10
_SUFFIX = ".prefix"


@dataclass(frozen=True, slots=True)
class Prefix:
    """A stored prefix: file name, tokens, size of the file in bytes, and seconds that each token took to compute."""

    name: str
    tokens: list[int]
    size: int
    token_seconds: float


@dataclass(frozen=True, slots=True)
class PrefixFile:
    """A file in the folder. ``used``: Unix time of its last use."""

    name: str
    size: int
    used: float


def superseded(known: Iterable[Prefix], tokens: list[int], *, cuttable: bool) -> list[Prefix]:
    """Return the prefixes that ``tokens`` continue. The longer one replaces them if memory is ``cuttable``."""
    if not cuttable:
        return []
    return [p for p in known if len(p.tokens) < len(tokens) and tokens[: len(p.tokens)] == p.tokens]


def files_to_evict(files: Sequence[PrefixFile], *, cap: int, incoming: int, now: float) -> list[str]:
    """Return the names of expired files, and of the least recently used until ``incoming`` bytes fit below ``cap``."""
    expired = [
        file for file in files if now - file.used > (ABANDONED_AFTER if file.name.startswith(TEMPORARY) else MAX_AGE)
    ]
    evicted = list(expired)
    remaining = [file for file in files if file not in expired]
    total = sum(file.size for file in remaining)
    for file in sorted(remaining, key=lambda file: file.used):
        if total + incoming <= cap:
            break
        if not file.name.startswith(TEMPORARY):  # another process is writing it
            evicted.append(file)
            total -= file.size
    return [file.name for file in evicted]


class PrefixStore:
    """The stored prefixes of one model with one set of adapters. Any thread may call it.

    ``identity``: everything that a state depends on; ``cap``: bytes of all files in the folder; ``cuttable`` False: a
    longer prefix cannot replace a shorter one.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], cap: int, *, cuttable: bool = True) -> None:
        self._folder = folder
        self._identity = dict(identity)
        self._cap = cap
        self._cuttable = cuttable
        self._mark = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        self._lock = threading.Lock()
        self._known = self._scan()

    @property
    def known(self) -> tuple[Prefix, ...]:
        """The prefixes in the folder by their headers; ``load`` verifies them."""
        with self._lock:
            return tuple(self._known)

    def load(self, prefix: Prefix) -> Bytes | None:
        """Return the state of a prefix. If the file is missing or a byte has changed, remove it and return None."""
        state = self._read(prefix)
        if state is None:
            self.remove(prefix)
            return None
        with contextlib.suppress(OSError):
            os.utime(self._folder / prefix.name)
        return state

    def store(
        self, tokens: list[int], state: Bytes, token_seconds: float, pause: Callable[[], object] = lambda: None
    ) -> Prefix | None:
        """Write a state; remove the prefixes that it replaces, and evict others until it fits.

        ``pause`` is called before every chunk. Return None if the state is too large or cannot be written.
        """
        header = json.dumps(
            {"made_by": self._identity, "tokens": len(tokens), "state": len(state), "pace": token_seconds}
        )
        head = _HEAD.pack(MAGIC, len(header.encode())) + header.encode()
        size = len(head) + 4 * len(tokens) + len(state) + _MAC_BYTES
        if size > self._cap:
            return None
        try:
            self._make_room(size)
            name = self._write(head, np.array(tokens, "<i4").tobytes(), state, pause)
        except (OSError, StoreError):
            return None
        prefix = Prefix(name, list(tokens), size, token_seconds)
        self._replace(prefix)
        return prefix

    def remove(self, prefix: Prefix) -> None:
        """Remove a prefix and its file."""
        with self._lock:
            self._known = [other for other in self._known if other.name != prefix.name]
        self._unlink(prefix.name)

    def _replace(self, prefix: Prefix) -> None:
        with self._lock:
            shorter = superseded(self._known, prefix.tokens, cuttable=self._cuttable)
            gone = {prefix.name, *(old.name for old in shorter)}
            self._known = [old for old in self._known if old.name not in gone] + [prefix]
        for old in shorter:
            self._unlink(old.name)

    # The folder

    def _scan(self) -> list[Prefix]:
        """Return this model's prefixes; remove expired and broken files."""
        for name in files_to_evict(self._files(), cap=self._cap, incoming=0, now=time.time()):
            self._unlink(name)
        found = []
        for file in self._files():
            if file.name.startswith(self._mark) and file.name.endswith(_SUFFIX):
                prefix = self._peek(file)
                if prefix is None:
                    self._unlink(file.name)
                else:
                    found.append(prefix)
        return found

    def _files(self) -> list[PrefixFile]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) or entry.name.startswith(TEMPORARY):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append(PrefixFile(entry.name, status.st_size, status.st_mtime))
        return found

    def _make_room(self, size: int) -> None:
        """Raises OSError if the disk is nearly full."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for name in files_to_evict(self._files(), cap=self._cap, incoming=size, now=time.time()):
            self._unlink(name)
        if shutil.disk_usage(self._folder).free < size + MIN_FREE_DISK:
            raise OSError("the disk is nearly full")

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    # One file

    def _write(self, head: bytes, tokens: bytes, state: Bytes, pause: Callable[[], object]) -> str:
        name = f"{self._mark}-{hashlib.sha256(tokens).hexdigest()[:32]}{_SUFFIX}"
        tree, mac = Tree(self._folder), hmac.new(self._make_key(), digestmod="sha256")
        with tree.temp(prefix=TEMPORARY, mode=0o600) as temp:
            for part in (head, tokens, *_chunks(state)):
                pause()
                mac.update(part)
                temp.write(part)
            temp.write(mac.digest())
            temp.commit(tree, self._folder / name)
        return name

    def _peek(self, file: PrefixFile) -> Prefix | None:
        """Return a file's header and tokens, not verified yet; None if it is not a prefix file of this model."""
        with contextlib.suppress(OSError, ValueError), _open(self._folder / file.name) as stream:
            header, _ = self._header(stream, file.size)
            tokens = np.frombuffer(stream.read(4 * header["tokens"]), "<i4", header["tokens"]).tolist()
            return Prefix(file.name, tokens, file.size, float(header["pace"]))
        return None

    def _header(self, stream: io.RawIOBase | io.BytesIO, size: int) -> tuple[dict[str, Any], int]:
        """Return the header and the offset of its end. Raises ValueError for a broken file or another model's file."""
        head = stream.read(_HEAD.size) or b""
        if len(head) < _HEAD.size:
            raise ValueError("too short")
        magic, length = _HEAD.unpack(head)
        if magic != MAGIC or length > _MAX_HEADER:
            raise ValueError("not a prefix file")
        try:
            header = json.loads(stream.read(length) or b"")
        except RecursionError as error:
            raise ValueError("broken header") from error
        if not isinstance(header, dict) or header.get("made_by") != self._identity:
            raise ValueError("made by another model or build")
        tokens, state, pace = header.get("tokens"), header.get("state"), header.get("pace")
        if not (type(tokens) is int and type(state) is int and type(pace) is float and 0 < tokens <= _MAX_TOKENS):
            raise ValueError("broken header")
        if _HEAD.size + length + 4 * tokens + state + _MAC_BYTES != size:
            raise ValueError("truncated")
        return header, _HEAD.size + length

    def _read(self, prefix: Prefix) -> Bytes | None:
        """Read the file once, verify these bytes, and return the state among them; None if anything differs."""
        with contextlib.suppress(OSError, ValueError), _open(self._folder / prefix.name) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != prefix.size or not (key := self._read_key()):
                return None
            data = np.empty(size, np.uint8)
            if not _read_verified(stream, data, key):
                return None
            header, at = self._header(io.BytesIO(data[: _HEAD.size + _MAX_HEADER].tobytes()), size)
            start = at + 4 * header["tokens"]
            same = np.array_equal(data[at:start].view("<i4"), np.array(prefix.tokens, "<i4"))
            return data[start : start + header["state"]] if same else None
        return None

    # The key

    def _read_key(self) -> bytes:
        """Return the key of the folder, or empty bytes if it has no valid one."""
        with contextlib.suppress(OSError), _open(self._folder / "key") as stream:
            key = stream.read(_MAC_BYTES + 1)
            return key if len(key) == _MAC_BYTES else b""
        return b""

    def _make_key(self) -> bytes:
        """Return the key, created on first use. If two processes create it together, both use the first one linked."""
        if key := self._read_key():
            return key
        path, draft = self._folder / "key", self._folder / f"{TEMPORARY}key-{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(_MAC_BYTES))
            if path.exists():  # a broken one
                path.unlink()
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
        key = self._read_key()
        if not key:
            raise OSError("cannot read the key of the prefix cache")
        return key


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.FileIO]:
    """Open a regular file without following links. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        yield stream


def _read_verified(stream: io.FileIO, data: Bytes, key: bytes) -> bool:
    """Fill ``data`` from the file; return whether its last bytes are the MAC of the others."""
    mac, view, at = hmac.new(key, digestmod="sha256"), memoryview(data.data), 0
    signed = len(view) - _MAC_BYTES
    while at < len(view):
        count = stream.readinto(view[at : at + _READ_CHUNK])
        if not count:
            return False
        mac.update(view[at : min(at + count, signed)] if at < signed else b"")
        at += count
    return hmac.compare_digest(mac.digest(), bytes(view[signed:]))


def _chunks(state: Bytes) -> Iterator[bytes]:
    for at in range(0, len(state), _WRITE_CHUNK):
        yield state[at : at + _WRITE_CHUNK].tobytes()


def file_identity(path: str) -> str:
    """Identify a model file: by the digest in its name, else by a hash of its path, size and modification time."""
    name = Path(path).name
    if name.startswith("sha256-"):
        return name
    status = Path(path).stat()
    text = f"{os.path.realpath(path)}|{status.st_size}|{status.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def state_identity(build: str, path: str, adapters: Adapters, **facts: str | bool) -> dict[str, Any]:
    """Return everything that a state depends on, as JSON values. Raises OSError if a file is missing."""
    changes = [[file_identity(adapter.path), adapter.scale] for adapter in adapters]
    return {"build": build, "model": file_identity(path), "adapters": changes, **facts}
