"""Whatever the moment of a crash: the store is sound, and an operation is wholly visible or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.ggufs import gguf
from support.stores import create, tiny

from ollama_nb.api.names import ModelName
from ollama_nb.store import fsops
from ollama_nb.store.store import Store

TESTS = Path(__file__).parent.parent


def test_killed_at_every_system_call(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "support.crashes", tmp_path]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)
    assert points.keys() == {"create", "create over", "copy", "copy over", "delete", "prune"}
    assert sum(points.values()) > 70
    assert all(count > 3 for count in points.values())


def test_the_disk_may_reorder_what_was_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut anything that was not synced may be missing. So: bytes are synced before they get a name, and a
    folder before anything builds on the name. A manifest comes after all that it names."""
    store = Store(tmp_path / "models")
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(fsops, "before", lambda call, subject: calls.append((call, subject)))
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
