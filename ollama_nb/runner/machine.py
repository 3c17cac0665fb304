"""How much memory this machine can give to models, as far as this process may use it.

Rule: a container's limits count, not the host's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UNKNOWN_MEMORY = 4 << 30
"""Bytes taken as free where the system does not say (it is not Linux)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """``free_memory``: bytes that may be filled without swapping. ``vram``: bytes of graphics memory, 0 for none."""

    free_memory: int
    vram: int = 0


def measure(root: Path = Path("/")) -> Machine:
    """Read the facts as they are now; ``root`` is where ``proc`` and ``sys`` lie."""
    left = [amount for group in _cgroups(root) if (amount := _memory_left(group)) is not None]
    return Machine(free_memory=max(0, min([_available(root), *left])))


def _available(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) << 10
    return UNKNOWN_MEMORY


def _cgroups(root: Path) -> list[Path]:
    """This process's control group and those above it (version 2)."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, path = line.partition("::")
        if number == "0":
            top = root / "sys/fs/cgroup"
            group = top / path.strip("/")
            return [group, *(above for above in group.parents if above.is_relative_to(top))]
    return []


def _memory_left(group: Path) -> int | None:
    limit, used = _read(group / "memory.max"), _read(group / "memory.current")
    if not (limit.isdigit() and used.isdigit()):
        return None
    return int(limit) - int(used) + _reclaimable(_read(group / "memory.stat"))


def _reclaimable(stat: str) -> int:
    """File pages count as used, but the kernel gives them up when memory is asked for."""
    return sum(
        int(amount)
        for name, _, amount in (line.partition(" ") for line in stat.splitlines())
        if name == "inactive_file"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
