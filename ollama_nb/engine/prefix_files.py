"""Kept prefixes as files: one folder for all models, files only for its owner, nothing read that is not proven whole.

A file: magic, length of the header, JSON header (what made it), tokens (int32), the state as llama.cpp gave it, and an
HMAC-SHA-256 over all of that with a key that lies in the folder. A file that differs in any byte, or was made by
another build, is removed and counts as absent; native code sees only bytes that this program has written.
Missing rights and full disks make the cache useless, never a request fail.
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
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ollama_nb.disk import Tree
from ollama_nb.engine.adapters import Adapters
from ollama_nb.engine.llama import Bytes
from ollama_nb.engine.prefix import UNFINISHED, File, Prefix, outdated
from ollama_nb.errors import StoreError

MAGIC = b"nbprefix"
LEAST_FREE = 256 << 20
"""Bytes of disk that are left to others."""
_HEAD = struct.Struct("<8sI")
_MAC = 32
_MAX_HEADER = 4096
_MAX_TOKENS = 1 << 24
_CHUNK, _PIECE = 4 << 20, 512 << 10  # of reading and of writing
_SUFFIX = ".prefix"


class PrefixFiles:
    """The prefixes of one loaded model. ``identity``: everything that a state depends on; ``cap``: bytes of all files.

    Any thread may call it; several processes share the folder.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], cap: int) -> None:
        self._folder = folder
        self._identity = dict(identity)
        self._cap = cap
        self._mark = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]

    def scan(self) -> list[Prefix]:
        """What is there for this model, as the headers say; ``read`` proves it. Old and broken files are removed."""
        for name in outdated(self._files(), cap=self._cap, incoming=0, now=time.time()):
            self.remove(name)
        found = []
        for file in self._files():
            if file.name.startswith(self._mark) and file.name.endswith(_SUFFIX):
                prefix = self._peek(file)
                if prefix is None:
                    self.remove(file.name)
                else:
                    found.append(prefix)
        return found

    def read(self, prefix: Prefix) -> Bytes | None:
        """The state of a prefix; None, and the file is gone, when a single byte is not as it was written."""
        data = self._load(prefix)
        if data is None:
            self.remove(prefix.name)
            return None
        with contextlib.suppress(OSError):
            os.utime(self._folder / prefix.name)
        return data

    def write(
        self, tokens: list[int], state: Bytes, pace: float, give_way: Callable[[], object] = int
    ) -> Prefix | None:
        """Keep a state under the hash of its tokens; others go. None: it does not fit, or cannot be written.

        ``give_way`` is called before every piece.
        """
        header = json.dumps({"made_by": self._identity, "tokens": len(tokens), "state": len(state), "pace": pace})
        head = _HEAD.pack(MAGIC, len(header.encode())) + header.encode()
        size = len(head) + 4 * len(tokens) + len(state) + _MAC
        if size > self._cap:
            return None
        try:
            self._make_room(size)
            name = self._write(head, np.array(tokens, "<i4").tobytes(), state, give_way)
        except (OSError, StoreError):
            return None
        return Prefix(name, list(tokens), size, pace)

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def _write(self, head: bytes, tokens: bytes, state: Bytes, give_way: Callable[[], object]) -> str:
        name = f"{self._mark}-{hashlib.sha256(tokens).hexdigest()[:32]}{_SUFFIX}"
        tree, mac = Tree(self._folder), hmac.new(self._key(), digestmod="sha256")
        with tree.temp(prefix=UNFINISHED, mode=0o600) as temp:
            for part in (head, tokens, *_chunks(state)):
                give_way()
                mac.update(part)
                temp.write(part)
            temp.write(mac.digest())
            temp.commit(tree, self._folder / name)
        return name

    def _make_room(self, size: int) -> None:
        """Raises OSError when the disk has none."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for name in outdated(self._files(), cap=self._cap, incoming=size, now=time.time()):
            self.remove(name)
        if shutil.disk_usage(self._folder).free < size + LEAST_FREE:
            raise OSError("the disk is nearly full")

    def _files(self) -> list[File]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) or entry.name.startswith(UNFINISHED):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append(File(entry.name, status.st_size, status.st_mtime))
        return found

    def _peek(self, file: File) -> Prefix | None:
        """A file's header and tokens, not yet proven; None: not one of ours."""
        with contextlib.suppress(OSError, ValueError), _opened(self._folder / file.name) as stream:
            header, _ = self._header(stream, file.size)
            tokens = np.frombuffer(stream.read(4 * header["tokens"]), "<i4", header["tokens"]).tolist()
            return Prefix(file.name, tokens, file.size, float(header["pace"]))
        return None

    def _header(self, stream: io.RawIOBase | io.BytesIO, size: int) -> tuple[dict[str, Any], int]:
        """The header, and where it ends. Raises ValueError where the file contradicts itself or has another maker."""
        head = stream.read(_HEAD.size) or b""
        if len(head) < _HEAD.size:
            raise ValueError("too short")
        magic, length = _HEAD.unpack(head)
        if magic != MAGIC or length > _MAX_HEADER:
            raise ValueError("no prefix file")
        try:
            header = json.loads(stream.read(length) or b"")
        except RecursionError as error:
            raise ValueError("no header") from error
        if not isinstance(header, dict) or header.get("made_by") != self._identity:
            raise ValueError("made by another model or build")
        tokens, state, pace = header.get("tokens"), header.get("state"), header.get("pace")
        if not (type(tokens) is int and type(state) is int and type(pace) is float and 0 < tokens <= _MAX_TOKENS):
            raise ValueError("broken header")
        if _HEAD.size + length + 4 * tokens + state + _MAC != size:
            raise ValueError("truncated")
        return header, _HEAD.size + length

    def _load(self, prefix: Prefix) -> Bytes | None:
        """Read the file once, prove the bytes that were read, and take the state out of them."""
        with contextlib.suppress(OSError, ValueError), _opened(self._folder / prefix.name) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != prefix.size or not (key := self._known_key()):
                return None
            data = np.empty(size, np.uint8)
            if not _read_proven(stream, data, key):
                return None
            header, at = self._header(io.BytesIO(data[: _HEAD.size + _MAX_HEADER].tobytes()), size)
            start = at + 4 * header["tokens"]
            same = np.array_equal(data[at:start].view("<i4"), np.array(prefix.tokens, "<i4"))
            return data[start : start + header["state"]] if same else None
        return None

    def _known_key(self) -> bytes:
        """The key that earlier files were signed with; empty: none."""
        with contextlib.suppress(OSError), _opened(self._folder / "key") as stream:
            key = stream.read(_MAC + 1)
            return key if len(key) == _MAC else b""
        return b""

    def _key(self) -> bytes:
        """The key to sign with, made at first use. Two processes that begin at once agree: the first link wins."""
        if key := self._known_key():
            return key
        path, draft = self._folder / "key", self._folder / f"{UNFINISHED}key-{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(_MAC))
            if path.exists():  # a broken one
                path.unlink()
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
        key = self._known_key()
        if not key:
            raise OSError("cannot read the key of the prefixes")
        return key


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """A regular file, not reached by a link. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        yield stream


def _read_proven(stream: io.FileIO, data: Bytes, key: bytes) -> bool:
    """Fill ``data`` from the file; whether its last bytes prove the others."""
    mac, view, at = hmac.new(key, digestmod="sha256"), memoryview(data.data), 0
    signed = len(view) - _MAC
    while at < len(view):
        count = stream.readinto(view[at : at + _CHUNK])
        if not count:
            return False
        mac.update(view[at : min(at + count, signed)] if at < signed else b"")
        at += count
    return hmac.compare_digest(mac.digest(), bytes(view[signed:]))


def _chunks(state: Bytes) -> Iterator[bytes]:
    for at in range(0, len(state), _PIECE):
        yield state[at : at + _PIECE].tobytes()


def file_identity(path: str) -> str:
    """What a model file is: the digest in its name, else a hash of where it lies, its size and its time."""
    name = Path(path).name
    if name.startswith("sha256-"):
        return name
    status = Path(path).stat()
    text = f"{os.path.realpath(path)}|{status.st_size}|{status.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def identity(build: str, path: str, adapters: Adapters, **facts: str | bool) -> dict[str, Any]:
    """Everything that a state depends on. Raises OSError when a file is gone."""
    changes = [[file_identity(adapter.path), adapter.scale] for adapter in adapters]
    return {"build": build, "model": file_identity(path), "adapters": changes, **facts}
