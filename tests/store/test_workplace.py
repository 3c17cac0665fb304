"""Folders for work: those of killed processes go, those in use stay."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from ollama_nb.errors import StoreError
from ollama_nb.store.workdir import PREFIX, locked_workdir, remove_stale


def leave(place: Path) -> Path:
    """What a killed process leaves: a folder, not locked."""
    left = place / f"{PREFIX}convert-abc"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "link").symlink_to("/etc/hostname")
    return left


def test_work_begins_in_an_empty_folder_and_leaves_none(tmp_path: Path) -> None:
    place = tmp_path / "nb" / "tmp"
    with locked_workdir(place, "convert") as folder:
        assert folder.parent == place and folder.name.startswith(f"{PREFIX}convert-")
        assert place.stat().st_mode & 0o777 == 0o700
        (folder / "x").write_text("x")
    assert list(place.iterdir()) == []


def test_the_next_work_clears_what_was_left_but_not_what_is_used(tmp_path: Path) -> None:
    left, other = leave(tmp_path), tmp_path / "mine.txt"
    other.write_text("x")
    with locked_workdir(tmp_path, "pip") as first, locked_workdir(tmp_path, "convert") as second:
        remove_stale(tmp_path)
        assert {*tmp_path.iterdir()} == {first, second, other}
    assert not left.exists() and Path("/etc/hostname").exists()


def test_a_sweep(tmp_path: Path) -> None:
    remove_stale(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    left = leave(tmp_path)
    remove_stale(tmp_path)
    assert not left.exists()


def test_without_locks_work_goes_on_and_nothing_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    left = leave(tmp_path)
    with locked_workdir(tmp_path, "pip") as folder:
        assert {*tmp_path.iterdir()} == {left, folder}


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot work in"), locked_workdir(tmp_path / "file" / "tmp", "pip"):
        pass
