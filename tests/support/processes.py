"""Find processes: to wait for them, and to check that none is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 60


def until(met: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Poll a condition, for what no event reports."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


def children() -> set[int]:
    """Every child of this process, zombies included."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def command_line(pid: int) -> str:
    """The command line of a process; empty for a zombie and for one that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return ""


def of_session(leader: int) -> list[int]:
    """Every living process of the session of ``leader``, itself included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == leader and fields[0] != b"Z":
                found.append(int(stat.parent.name))
    return found
