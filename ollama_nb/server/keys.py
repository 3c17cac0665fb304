"""API keys of the standalone server and their scopes: kept as hashes in one file, which is read again when it changes.

As soon as a key exists, every request needs one. A server that has seen a key continues to require one when the last
key is removed or expires, because removing a key must never open a server.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_nb import disk
from ollama_nb.errors import BadRequest, Forbidden, NotFound, OllamaError, StoreError, Unauthorized
from ollama_nb.runtime import key_hash
from ollama_nb.server.access import KEY_PREFIX, KEY_REQUIRED, Keys, offered_key

INFER, READ, WRITE, ADMIN = SCOPES = "infer", "read", "write", "admin"
ANY_KEY = ""  # the scope of requests for which every valid key is sufficient
DEFAULT_SCOPES = (INFER, READ)
_DAY = 86_400.0  # seconds
_MAX_BYTES = 4 << 20  # size of the key file
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,80}")
_log = logging.getLogger("ollama_nb.server")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key without its text. Times are Unix seconds; ``expires_at`` None means never."""

    name: str
    hash: bytes
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None

    def allows(self, scope: str) -> bool:
        return scope in self.scopes or ADMIN in self.scopes

    def is_valid(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


class KeyFile:
    """``keys.json`` in the state folder. Several processes may use it at the same time."""

    def __init__(self, home: Path) -> None:
        self.path = home / "keys.json"
        self._state: tuple[int, ...] | None = None
        self._keys: tuple[ApiKey, ...] = ()

    def read(self) -> tuple[ApiKey, ...]:
        """All keys, expired ones too. Raises StoreError if the file is damaged or other users can change it."""
        state = _state(self.path)
        if state is None:
            self._state, self._keys = None, ()
        elif state != self._state:
            self._keys = _read(self.path)
            self._state = state
        return self._keys

    def add(self, name: str, scopes: Sequence[str] = DEFAULT_SCOPES, days: float | None = None) -> tuple[ApiKey, str]:
        """Make a key; return it with its text, which is not stored. Raises BadRequest for an invalid or taken name."""
        if not _NAME.fullmatch(name.strip()):
            raise BadRequest(f"invalid name for a key: {name!r}")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise BadRequest(f'unknown scope "{"".join(unknown[:1])}": choose among {", ".join(SCOPES)}')
        if days is not None and not 0 < days < 1e6:
            raise BadRequest(f"a key cannot be valid for {days:g} days")
        text = KEY_PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        ordered = tuple(scope for scope in SCOPES if scope in scopes)
        key = ApiKey(name.strip(), key_hash(text), ordered, now, None if days is None else now + days * _DAY)
        with self._changing() as keys:
            if any(known.name == key.name for known in keys):
                raise BadRequest(f"a key named '{key.name}' exists already: remove it first, or choose another name")
            self._write([*keys, key])
        return key, text

    def remove(self, name: str) -> None:
        """Remove a key; running servers refuse it from the next request on. Raises NotFound."""
        with self._changing() as keys:
            left = [key for key in keys if key.name != name]
            if len(left) == len(keys):
                raise NotFound(f"there is no key named '{name}'")
            self._write(left)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[ApiKey, ...]]:
        """The present keys, with the file locked against other processes."""
        with disk.store_errors("create the folder", self.path.parent):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with disk.folder_lock(self.path.parent):
            yield self.read()

    def _write(self, keys: Sequence[ApiKey]) -> None:
        body = {"keys": [_json(key) for key in keys]}
        disk.write(self.path, (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode(), mode=0o600)


class KeyRing:
    """Checks the keys of requests: the server's own keys have all scopes, those of the file the scopes stored there."""

    def __init__(self, own: Keys | None = None, file: KeyFile | None = None) -> None:
        self._own = own or Keys()
        self._file = file
        self._closed = bool(own) and file is None
        self._last: tuple[ApiKey, ...] = ()
        self._logged = ""

    def check(self, headers: Mapping[str, str], scope: str) -> None:
        """Raise Unauthorized if no valid key is sent, Forbidden if the key lacks the scope ``scope``."""
        known = self._known()
        if not self._closed or self._own.accept(headers):
            return
        key = _found(known, offered_key(headers))
        if key is None or not key.is_valid(time.time()):
            raise Unauthorized(KEY_REQUIRED)
        if scope != ANY_KEY and not key.allows(scope):
            raise Forbidden(f"the key '{key.name}' is not allowed to do this: it lacks the scope \"{scope}\"")

    def prove(self, challenge: str) -> str:
        """The proof that this server has its own key, the one in its runtime file."""
        return self._own.prove(challenge)

    @property
    def closed(self) -> bool:
        """Whether requests need a key."""
        self._known()
        return self._closed

    def _known(self) -> tuple[ApiKey, ...]:
        """The keys of the file; while it is damaged, those that it held before."""
        if self._file is None:
            return ()
        try:
            self._last = self._file.read()
        except OllamaError as error:
            if error.message != self._logged:
                self._logged = error.message
                _log.error("%s; the keys read before stay valid", error.message)
            self._closed = True
        self._closed = self._closed or bool(self._last)
        return self._last


def _found(known: Sequence[ApiKey], offered: str) -> ApiKey | None:
    """The key with the text ``offered``. Compares with every key, so that the duration reveals nothing."""
    hashed, found = key_hash(offered), None
    for key in known:
        if hmac.compare_digest(key.hash, hashed):
            found = key
    return found


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {disk.display_path(path)}: {error.strerror}") from error
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)


def _read(path: Path) -> tuple[ApiKey, ...]:
    with disk.store_errors("read", path, reading=True), path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o022 or status.st_uid not in (os.getuid(), 0):
            raise StoreError(f"{disk.display_path(path)} can be changed by other users: run `chmod 600` on it")
        raw = file.read(_MAX_BYTES)
    try:
        return tuple(_key(item) for item in json.loads(raw)["keys"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StoreError(f"{disk.display_path(path)} is damaged: {error}") from error


def _json(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "sha256": key.hash.hex(),
        "scopes": list(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }


def _key(item: Mapping[str, Any]) -> ApiKey:
    expires_at = item["expires_at"]
    return ApiKey(
        str(item["name"]),
        bytes.fromhex(item["sha256"]),
        tuple(str(scope) for scope in item["scopes"]),
        float(item["created_at"]),
        None if expires_at is None else float(expires_at),
    )
