"""Stored responses: one file per response in a folder that all servers of one user share.

Theory of operation. A finished response is written once and never changes. One that is generated in the background is
written when it begins, by the server that generates it (its owner), and again when it ends. Readers and writers need
no lock, because each file is complete when it gets its name. Two things need the lock of the folder: to replace a
record only if no other process has changed it meanwhile, and to decide whether an owner is alive.

- An owner holds a lock on a file of its own. The system releases it when the process ends, however it ends. A response
  whose owner is gone is reported, and stored, as failed.
- Another server cancels or deletes a response by changing its file. The owner looks at the file regularly
  (``is_current``), and ends the generation when it is not the one that it wrote.

A response is kept for ``ttl`` seconds after its last change. When all files together exceed ``max_bytes``, the oldest
ones are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ollama_nb import disk
from ollama_nb.errors import NotFound, OllamaError, ResponseNotFound

Item = Mapping[str, Any]
"""An input or output item as JSON, with ``type`` and ``id``."""

TTL = 86_400.0  # seconds
MAX_BYTES = 512 << 20  # of all files together
MAX_CACHED = 32 << 20  # bytes of files whose records are also in memory
TOKEN = 32  # hex digits that the ids of a response and of its items share
TOUCH_AFTER = 60.0  # seconds after which the file of a running response is marked as recent again
_STALE = 3600.0  # seconds after which a temporary file is taken for one of a process that was killed
_ID = re.compile(rf"resp_[0-9a-f]{{{TOKEN}}}")
_ITEM_ID = re.compile(rf"[a-z]+_([0-9a-f]{{{TOKEN}}})[io]\d+")
_LOCK = ".lock"
_log = logging.getLogger("ollama_nb.server")

_Signature = tuple[int, int, int]
"""Inode, time of the last change and size: differs between any two versions of a file."""


def new_id() -> str:
    return f"resp_{secrets.token_hex(TOKEN // 2)}"


def item_id(prefix: str, response_id: str, kind: str, index: int) -> str:
    """The id of an item of a response, from which the response can be found. ``kind``: ``i`` input, ``o`` output."""
    return f"{prefix}_{response_id.removeprefix('resp_')}{kind}{index}"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and what is needed to continue it.

    ``response`` is the object that the API returns. ``input`` are the items that the model read, those of earlier
    responses included. ``owner`` names the server that is generating it; empty: it has ended. ``frames`` are the
    server-sent events of a background stream, in the order of their sequence numbers; None: it was not streamed.
    """

    response: Mapping[str, Any]
    input: tuple[Item, ...] = ()
    owner: str = ""
    frames: tuple[str, ...] | None = None

    @property
    def id(self) -> str:
        return str(self.response["id"])

    @property
    def items(self) -> tuple[Item, ...]:
        """The whole conversation: input and output."""
        return (*self.input, *self.response["output"])

    def ended(self, status: str, error: Mapping[str, Any] | None = None) -> StoredResponse:
        """The record of a response that ended without its owner."""
        return replace(self, owner="", response={**self.response, "status": status, "error": error})


class ResponseStore:
    """The stored responses of one user. Its methods block: call them in worker threads."""

    def __init__(
        self, root: Path, *, ttl: float = TTL, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self.root, self._ttl, self._max_bytes, self._clock = root, ttl, max_bytes, clock
        self.name = secrets.token_hex(8)
        """Identifies this object as the owner of running responses."""
        self._lock_file = -1
        self._written: dict[str, _Signature] = {}
        self._write_lock = threading.RLock()  # held from a write of this server until it is in ``_written``
        self._cache: OrderedDict[str, tuple[_Signature, StoredResponse]] = OrderedDict()
        self._cache_lock = threading.Lock()

    def get(self, response_id: str) -> StoredResponse:
        """Raises ResponseNotFound."""
        record = self._load(response_id)
        if self._is_orphan(record):
            with self._locked():
                record = self._load(response_id)
                if self._is_orphan(record):
                    reason = "the server that generated this response ended before the response did"
                    record = record.ended("failed", {"code": "server_error", "message": reason})
                    self._write(record)
        return record

    def item(self, item_id: str) -> Item:
        """An item of a stored response. Raises NotFound."""
        found = _ITEM_ID.fullmatch(item_id)
        with contextlib.suppress(ResponseNotFound):
            for item in self.get(f"resp_{found[1]}").items if found else ():
                if item["id"] == item_id:
                    return item
        raise NotFound(f'item "{item_id[:80]}" not found: items are kept for a day, and only of stored responses')

    def put(self, record: StoredResponse) -> None:
        """Store a new response, and remove what is too old or too much. Raises StoreError."""
        self._make_root()
        if record.owner:
            self._become_owner()
        self._write(record)
        self.tidy()

    def update(self, record: StoredResponse) -> bool:
        """Replace the record of a running response of this server, unless it was cancelled or deleted meanwhile."""
        with self._locked():
            current = self.is_current(record.id)
            if current:
                self._write(record)
        if not record.owner:
            self._written.pop(record.id, None)
        return current

    def is_current(self, response_id: str) -> bool:
        """Whether the file is the one that this server wrote last."""
        path = self._path(response_id)
        with self._write_lock:
            written = self._written.get(response_id)
            if written is None or _signature(path) != written:
                return False
            if self._clock() - written[1] / 1e9 > TOUCH_AFTER and disk.Tree(self.root).touch(path):
                self._written[response_id] = _signature(path) or written
            return True

    def cancel(self, response_id: str) -> StoredResponse:
        """Mark a running response as cancelled; its owner then stops. Raises ResponseNotFound."""
        with self._locked():
            record = self._load(response_id)
            if record.owner:
                record = record.ended("cancelled")
                self._write(record)
            return record

    def delete(self, response_id: str) -> None:
        """Raises ResponseNotFound."""
        path = self._path(response_id)
        with self._cache_lock:
            self._cache.pop(response_id, None)
        if self._age(path) > self._ttl:
            raise _not_found(response_id)
        with self._locked():
            removed = disk.Tree(self.root).remove(path)
        if not removed:
            raise _not_found(response_id)

    def tidy(self) -> None:
        """Remove expired responses, the oldest ones above the size limit, and what killed processes left behind."""
        total = 0
        for modified, size, path in sorted(self._files(), reverse=True):
            is_newest = total == 0
            total += size
            if self._clock() - modified > self._ttl or (total > self._max_bytes and not is_newest):
                disk.Tree(self.root).remove(path)
        for path in self.root.glob(f".*{_LOCK}"):
            self._remove_released(path)

    def close(self) -> None:
        """Give up the ownership of running responses."""
        if self._lock_file >= 0:
            self._lock_path(self.name).unlink(missing_ok=True)
            os.close(self._lock_file)
            self._lock_file = -1

    def _load(self, response_id: str) -> StoredResponse:
        path = self._path(response_id)
        signature = _signature(path)
        if signature is None or self._clock() - signature[1] / 1e9 > self._ttl:
            raise _not_found(response_id)
        with self._cache_lock:
            cached = self._cache.get(response_id)
        if cached is not None and cached[0] == signature:
            return cached[1]
        try:
            record = _decode(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not isinstance(error, FileNotFoundError):
                _log.warning("the stored response %s cannot be read: %s", response_id, error)
            raise _not_found(response_id) from None
        self._remember(signature, record)
        return record

    def _write(self, record: StoredResponse) -> None:
        path = self._path(record.id)
        with self._write_lock:
            disk.write(path, _encode(record), mode=0o600)
            signature = _signature(path)
            if signature is not None and record.owner == self.name:
                self._written[record.id] = signature
        if signature is not None:
            self._remember(signature, record)

    def _remember(self, signature: _Signature, record: StoredResponse) -> None:
        with self._cache_lock:
            self._cache[record.id] = signature, record
            self._cache.move_to_end(record.id)
            while sum(known[2] for known, _ in self._cache.values()) > MAX_CACHED:
                self._cache.popitem(last=False)

    def _path(self, response_id: str) -> Path:
        if not _ID.fullmatch(response_id):
            raise _not_found(response_id)
        return self.root / f"{response_id}.json"

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of the last change, size and path of each record; temporary files only when they are stale."""
        for path in self.root.iterdir():
            is_record = path.suffix == ".json" and _ID.fullmatch(path.stem)
            if is_record or (path.name.startswith(".resp_") and self._age(path) > _STALE):
                signature = _signature(path)
                if signature is not None:
                    yield signature[1] / 1e9 if is_record else 0.0, signature[2], path

    def _age(self, path: Path) -> float:
        """Seconds since the last change; infinity for a missing file."""
        signature = _signature(path)
        return float("inf") if signature is None else self._clock() - signature[1] / 1e9

    # Owners

    def _lock_path(self, owner: str) -> Path:
        return self.root / f".{owner}{_LOCK}"

    def _become_owner(self) -> None:
        if self._lock_file >= 0:
            return
        with self._locked(), disk.store_errors("write in", self.root):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock_file = os.open(self._lock_path(self.name), flags, 0o600)
            with contextlib.suppress(OSError):  # a file system without locks: an owner that dies is not noticed
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_orphan(self, record: StoredResponse) -> bool:
        return record.owner not in ("", self.name) and not _is_held(self._lock_path(record.owner))

    def _remove_released(self, path: Path) -> None:
        """Remove the lock file of an owner that is gone. One that is being made now is held under the folder's lock."""
        with self._locked():
            if path != self._lock_path(self.name) and not _is_held(path):
                path.unlink(missing_ok=True)

    def _make_root(self) -> None:
        with contextlib.suppress(OSError):  # if it is not possible, the write that follows reports it
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._make_root()
        with disk.folder_lock(self.root):
            yield


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock on the file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return True  # without locks nothing is known: the response counts as running until it expires
    finally:
        os.close(file)
    return False


def _signature(path: Path) -> _Signature | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _not_found(response_id: str) -> OllamaError:
    return ResponseNotFound(f'response "{response_id[:80]}" not found: it was not stored, was deleted or has expired')


def _encode(record: StoredResponse) -> bytes:
    fields: dict[str, Any] = {"response": record.response, "input": record.input, "owner": record.owner}
    if record.frames is not None:
        fields["frames"] = record.frames
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _decode(data: bytes) -> StoredResponse:
    fields = json.loads(data)
    frames: Sequence[str] | None = fields.get("frames")
    return StoredResponse(
        fields["response"], tuple(fields["input"]), fields["owner"], None if frames is None else tuple(frames)
    )
