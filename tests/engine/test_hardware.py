"""Thread counts from a machine's own description."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ollama_nb.engine.hardware import TINY_MODEL, default_threads


def machine(root: Path, siblings: dict[int, str], quota: str = "") -> Path:
    for cpu, text in siblings.items():
        folder = root / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    if quota:
        (root / "fs/cgroup").mkdir(parents=True)
        (root / "fs/cgroup/cpu.max").write_text(quota + "\n")
    return root


@pytest.mark.parametrize(
    ("siblings", "quota", "threads"),
    [
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, "", 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "", 4),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "250000 100000", 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "max 100000", 4),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "50000 100000", 1),
        ({}, "", 4),
    ],
    ids=["two threads a core", "four cores", "quota", "no quota", "half a core", "nothing known"],
)
def test_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: dict[int, str], quota: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert default_threads(10**9, machine(tmp_path, siblings, quota)) == threads


def test_tiny_models_get_one_thread() -> None:
    assert default_threads(TINY_MODEL - 1) == 1
