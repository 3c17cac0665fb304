"""API keys of the standalone server: kept as hashes in one file, read again whenever it changes.

Once a key exists every request needs one. A server that has seen a key stays closed when the last one goes: removing or
outliving a key must never open a server.
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
from ollama_nb.server.access import Keys, key_hash, offered_key
from ollama_nb.server.scopes import ADMIN, INFER, READ, SCOPES

DEFAULT_SCOPES = (INFER, READ)
PREFIX = "onb_"
_DAY = 86_400.0
_MAX_BYTES = 4 << 20
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,80}")
_log = logging.getLogger("ollama_nb.server")


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; times are Unix seconds, ``expires_at`` None is never."""

    name: str
    hash: bytes
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None

    def allows(self, scope: str) -> bool:
        return scope in self.scopes or ADMIN in self.scopes

    def lives(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


class KeyFile:
    """``keys.json`` in the folder of our own state. Every method may be called from any process."""

    def __init__(self, home: Path) -> None:
        self.path = home / "keys.json"
        self._state: tuple[int, ...] | None = None
        self._keys: tuple[Key, ...] = ()

    def read(self) -> tuple[Key, ...]:
        """All keys, expired ones too. Raises StoreError for a file that is broken, or that others may change."""
        state = _state(self.path)
        if state is None:
            self._state, self._keys = None, ()
        elif state != self._state:
            self._keys = _read(self.path)
            self._state = state
        return self._keys

    def add(self, name: str, scopes: Sequence[str] = DEFAULT_SCOPES, days: float | None = None) -> tuple[Key, str]:
        """Make a key; the text is known here and now only. Raises BadRequest for a name that is taken, or none."""
        if not _NAME.fullmatch(name.strip()):
            raise BadRequest(f"invalid name for a key: {name!r}")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise BadRequest(f'unknown scope "{"".join(unknown[:1])}": choose among {", ".join(SCOPES)}')
        if days is not None and not 0 < days < 1e6:
            raise BadRequest(f"a key cannot be good for {days:g} days")
        text = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        ordered = tuple(scope for scope in SCOPES if scope in scopes)
        key = Key(name.strip(), key_hash(text), ordered, now, None if days is None else now + days * _DAY)
        with self._changing() as keys:
            if any(known.name == key.name for known in keys):
                raise BadRequest(f"a key named '{key.name}' exists: remove it first, or choose another name")
            self._write([*keys, key])
        return key, text

    def remove(self, name: str) -> None:
        """Revoke a key: running servers refuse it from their next request on. Raises NotFound."""
        with self._changing() as keys:
            left = [key for key in keys if key.name != name]
            if len(left) == len(keys):
                raise NotFound(f"no key is named '{name}'")
            self._write(left)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Key, ...]]:
        """Nobody else changes the file meanwhile."""
        with disk.store_errors("create the folder", self.path.parent):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with disk.folder_lock(self.path.parent):
            yield self.read()

    def _write(self, keys: Sequence[Key]) -> None:
        body = {"keys": [_json(key) for key in keys]}
        disk.write(self.path, (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode(), mode=0o600)


class KeyRing:
    """Who may come in: the server's own keys open everything, those of the file what their scopes say."""

    def __init__(self, own: Keys | None = None, file: KeyFile | None = None) -> None:
        self._own = own or Keys()
        self._file = file
        self._closed = bool(own) and file is None
        self._last: tuple[Key, ...] = ()
        self._told = ""

    def check(self, headers: Mapping[str, str], scope: str) -> None:
        """Raises Unauthorized without a key that is good, Forbidden when it does not reach as far as ``scope``."""
        known = self._known()
        if not self._closed or self._own.open(headers):
            return
        key = _found(known, offered_key(headers))
        if key is None or not key.lives(time.time()):
            raise Unauthorized("unauthorized")
        if not key.allows(scope):
            raise Forbidden(f"the key '{key.name}' may not do this: it lacks the scope \"{scope}\"")

    @property
    def closed(self) -> bool:
        """Whether a key is asked for."""
        self._known()
        return self._closed

    def _known(self) -> tuple[Key, ...]:
        """The file's keys; the last good ones while it is broken."""
        if self._file is None:
            return ()
        try:
            self._last = self._file.read()
        except OllamaError as error:
            if error.message != self._told:
                self._told = error.message
                _log.error("%s; the keys that were good before go on", error.message)
            self._closed = True
        self._closed = self._closed or bool(self._last)
        return self._last


def _found(known: Sequence[Key], offered: str) -> Key | None:
    """The key of that text; the time that this takes says nothing about how much of it was right."""
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


def _read(path: Path) -> tuple[Key, ...]:
    with disk.store_errors("read", path), path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o022 or status.st_uid not in (os.getuid(), 0):
            raise StoreError(f"{disk.display_path(path)} can be changed by other users: `chmod 600` it")
        raw = file.read(_MAX_BYTES)
    try:
        return tuple(_key(item) for item in json.loads(raw)["keys"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StoreError(f"{disk.display_path(path)} is broken: {error}") from error


def _json(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "sha256": key.hash.hex(),
        "scopes": list(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }


def _key(item: Mapping[str, Any]) -> Key:
    expires_at = item["expires_at"]
    return Key(
        str(item["name"]),
        bytes.fromhex(item["sha256"]),
        tuple(str(scope) for scope in item["scopes"]),
        float(item["created_at"]),
        None if expires_at is None else float(expires_at),
    )
