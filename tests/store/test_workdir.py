"""Temporary folders: those of killed processes are removed, those in use are kept."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from ollama_nb.errors import StoreError
from ollama_nb.store.workdir import PREFIX, locked_workdir, remove_stale


def abandoned(place: Path) -> Path:
    """Create the folder of a killed process, which is not locked."""
    left = place / f"{PREFIX}convert-abc"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "link").symlink_to("/etc/hostname")
    return left


def test_the_folder_is_empty_at_first_and_removed_at_the_end(tmp_path: Path) -> None:
    place = tmp_path / "nb" / "tmp"
    with locked_workdir(place, "convert") as folder:
        assert folder.parent == place and folder.name.startswith(f"{PREFIX}convert-")
        assert place.stat().st_mode & 0o777 == 0o700
        (folder / "x").write_text("x")
    assert list(place.iterdir()) == []


def test_stale_folders_are_removed_and_used_ones_kept(tmp_path: Path) -> None:
    left, other = abandoned(tmp_path), tmp_path / "mine.txt"
    other.write_text("x")
    with locked_workdir(tmp_path, "pip") as first, locked_workdir(tmp_path, "convert") as second:
        remove_stale(tmp_path)
        assert {*tmp_path.iterdir()} == {first, second, other}
    assert not left.exists() and Path("/etc/hostname").exists()


def test_remove_stale(tmp_path: Path) -> None:
    remove_stale(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    left = abandoned(tmp_path)
    remove_stale(tmp_path)
    assert not left.exists()


def test_without_file_locks_no_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    left = abandoned(tmp_path)
    with locked_workdir(tmp_path, "pip") as folder:
        assert {*tmp_path.iterdir()} == {left, folder}


def test_error_if_the_folder_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot work in"), locked_workdir(tmp_path / "file" / "tmp", "pip"):
        pass
