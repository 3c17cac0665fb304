"""How many threads a model gets: physical cores that this process may really use, and one for tiny models."""

from __future__ import annotations

import os
from pathlib import Path

TINY_MODEL = 20_000_000
"""Below so many parameters a second thread costs more in waiting than it computes."""


def default_threads(n_params: int, root: Path = Path("/sys")) -> int:
    """Threads for a model of this size on this machine, at least one."""
    if n_params < TINY_MODEL:
        return 1
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(root, cpu) for cpu in usable}
    return max(1, min(len(cores), _quota(root)))


def _siblings(root: Path, cpu: int) -> str:
    """Names a processor's core by the processors that share it."""
    try:
        return (root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(root: Path) -> int:
    """Whole processors that the container's quota allows (cgroup v2, then v1)."""
    try:
        quota, period = (root / "fs/cgroup/cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return 1 << 16
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return 1 << 16  # "max" or -1: no quota
    return max(1, int(quota) // int(period))
