"""Which processes are there: to wait for them, and to see that none is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 60


def until(met: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait for what no event tells."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children() -> set[int]:
    """Every child of this process, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def command_line(pid: int) -> str:
    """What a process runs; empty for a zombie and for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return ""


def of_session(leader: int) -> list[int]:
    """Every living process of the session that ``leader`` leads or led, itself included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == leader and fields[0] != b"Z":
                found.append(int(stat.parent.name))
    return found
