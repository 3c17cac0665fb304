"""Whose server listens on a local port: on a shared machine, prompts must not go to a neighbour's."""

from __future__ import annotations

from pathlib import Path

_LISTEN = "0A"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def owners(port: int, tables: tuple[str, ...] = _TABLES) -> set[int] | None:
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
