"""Crash safety: after a kill or a power failure the store is valid, and an operation has happened or not."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.crashes import OPERATIONS, Operation, crash_states, prepare, random_scenario, record
from support.ggufs import gguf
from support.stores import check_sound_files, create, published, published_in, snapshot, tiny

from ollama_nb import disk
from ollama_nb.api.names import ModelName
from ollama_nb.store.store import Store

TESTS = Path(__file__).parent.parent


def killed_everywhere(folder: Path, least: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "support.crashes", str(folder), str(least)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_killed_at_every_system_call(tmp_path: Path) -> None:
    points = killed_everywhere(tmp_path)["points"]
    assert points.keys() == OPERATIONS.keys()
    assert sum(points.values()) > 90
    assert all(count > 3 for count in points.values())


@pytest.mark.slow
def test_killed_at_thousands_of_points(tmp_path: Path) -> None:
    found = killed_everywhere(tmp_path, least=2500)
    assert found["random scenarios"] > 50
    assert sum(found["points"].values()) + found["random points"] >= 2500


def power_cuts(folder: Path, make: Operation, operation: Operation, monkeypatch: pytest.MonkeyPatch) -> int:
    """Check every possible state of the disk after a power failure; return the number of states."""
    store = Store(folder / "models")
    make(store)
    start = snapshot(store.root)
    log = record(store.root, lambda: operation(Store(store.root)), monkeypatch)
    allowed = (published_in(start), published(store.root))
    count = 0
    for count, state in enumerate(crash_states(start, log), 1):  # noqa: B007
        check_sound_files(state)
        assert published_in(state) in allowed
    return count


@pytest.mark.parametrize("name", OPERATIONS)
def test_power_failure_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert power_cuts(tmp_path, prepare, OPERATIONS[name], monkeypatch) > 6


@pytest.mark.slow
def test_power_failures_in_thousands_of_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, seed = 0, 0
    while states < 5000:
        make, operation, _ = random_scenario(seed)
        states += power_cuts(tmp_path / str(seed), make, operation, monkeypatch)
        seed += 1
    assert seed > 20


def test_a_missing_sync_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one kind of fsync, the simulation finds an invalid state."""
    for kind in ("file", "folder"):
        sync = disk.fsync

        def forgetful(descriptor: int, name: str, kind: str = kind, sync: Any = sync) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) != (kind == "folder"):
                sync(descriptor, name)

        with monkeypatch.context() as patch:
            patch.setattr(disk, "fsync", forgetful)
            with pytest.raises(AssertionError):
                power_cuts(tmp_path / kind, prepare, OPERATIONS["create"], patch)


def test_order_of_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure may lose anything that was not synced.

    Therefore a file is synced before it is renamed, its folder before the name is used, and all blobs before the
    manifest that uses them.
    """
    store = Store(tmp_path / "models")
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(disk, "before_change_hook", lambda call, subject: calls.append((call, subject)))
    tiny(store, "m", system="s", template="t")
    create(store, "m", files={"x.gguf": gguf(data=bytes(64))}, system="s2")
    unsynced: set[str] = set()
    pending_folder = False
    for call, subject in calls:
        if call == "write":
            unsynced.add(subject)
        elif call == "fsync":
            unsynced.discard(subject)
            pending_folder = False
        elif call in ("rename", "mkdir", "unlink", "rmdir"):
            assert not pending_folder, f"{call} {subject} builds on a name that may be lost"
            assert not unsynced or call != "rename", f"{call} {subject} before its bytes are on the disk"
            pending_folder = True
    renamed = [subject for call, subject in calls if call == "rename"]
    assert renamed.count("latest") == 2
    assert renamed[-1] == "latest"
    assert store.resolve(ModelName.parse("m")).system == "s2"
