"""Runtime files, by which a user's servers and clients find each other: ``{"url", "key", "pid", "build"}``.

A key must reach nobody but its own server, and a prompt nobody else's: so files of other users count for nothing, and
neither do ports on which other users listen.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_MOST_BYTES = 1 << 16
_LISTEN = "0A"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where a server listens, the key that it takes, its process, and the version that it is."""

    url: str
    key: str
    pid: int
    build: str = ""


def read(path: Path) -> Runtime | None:
    """None when there is no such file, it is half written, or others own it or may read it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o077):
                return None
            found = json.loads(file.read(_MOST_BYTES)) if stat.S_ISREG(status.st_mode) else {}
        return Runtime(str(found["url"]), str(found["key"]), int(found["pid"]), str(found.get("build", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def listeners(port: int, tables: tuple[str, ...] = _TABLES) -> set[int] | None:
    """User ids of the sockets that listen on ``port``; None where the system does not tell (outside Linux)."""
    found: set[int] = set()
    readable = False
    for table in tables:
        try:
            rows = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        readable = True
        found |= {int(uid) for local, state, uid in map(_columns, rows) if state == _LISTEN and _port(local) == port}
    return found if readable else None


def _columns(row: str) -> tuple[str, str, str]:
    cells = row.split()
    return cells[1], cells[3], cells[7]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
