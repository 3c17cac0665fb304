"""The blob store: names match digests, and nothing is written or removed through links."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from ollama_nb import disk
from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, NotFound, StoreError
from ollama_nb.store.blobs import BlobStore


def digest(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "models" / "blobs")


def files(blobs: BlobStore) -> list[str]:
    return sorted(path.name for path in blobs.root.iterdir())


def test_add_and_read(blobs: BlobStore) -> None:
    assert not blobs.root.exists()
    assert list(blobs.digests()) == []
    added = blobs.add(b"hello")
    assert added == digest(b"hello")
    assert (blobs.read(added, 10), blobs.size(added), list(blobs.digests())) == (b"hello", 5, [added])
    assert files(blobs) == [added.filename]


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_file_modes_follow_the_umask(blobs: BlobStore, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        added = blobs.add(b"hello")
    finally:
        os.umask(before)
    assert blobs.path(added).stat().st_mode & 0o777 == file
    assert blobs.root.stat().st_mode & 0o777 == folder


def test_add_file_copies_the_file(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert blobs.read(blobs.add_file(tmp_path / "f"), 4_000_000) == b"x" * 3_000_000
    with pytest.raises(StoreError, match="cannot read"):
        blobs.add_file(tmp_path / "missing")


def test_a_wrong_digest_stores_nothing(blobs: BlobStore) -> None:
    wanted = digest(b"wanted")
    with pytest.raises(BadRequest) as caught, blobs.writer() as writer:
        writer.write(b"got")
        writer.commit(wanted)
    assert caught.value.message == f'digest mismatch, expected "{wanted}", got "{digest(b"got")}"'
    assert files(blobs) == []


def test_an_abandoned_writer_leaves_no_file(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        writer.write(b"half")
        assert writer.path.name.startswith("sha256-")
        assert not blobs.has(digest(b"half"))
    assert files(blobs) == []


def test_the_same_blob_from_many_threads(blobs: BlobStore) -> None:
    data = os.urandom(2_000_000)

    def upload() -> None:
        with blobs.writer() as writer:
            for at in range(0, len(data), 100_000):
                writer.write(data[at : at + 100_000])
            writer.commit(digest(data))

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(blobs) == [digest(data).filename]
    assert blobs.read(digest(data), 3_000_000) == data


def test_adding_an_existing_blob_touches_it(blobs: BlobStore) -> None:
    added = blobs.add(b"old")
    os.utime(blobs.path(added), (0, 0))
    blobs.add(b"old")
    assert blobs.path(added).stat().st_mtime > 1_000_000


def test_a_truncated_blob_is_replaced(blobs: BlobStore) -> None:
    added = blobs.add(b"whole")
    blobs.path(added).write_bytes(b"who")
    blobs.add(b"whole")
    assert blobs.read(added, 10) == b"whole"


def test_reading_a_missing_or_too_large_blob(blobs: BlobStore) -> None:
    with pytest.raises(NotFound, match=r'blob "sha256:a+" not found'):
        blobs.read(Digest("a" * 64), 10)
    with pytest.raises(StoreError, match="more than the limit of 3 bytes"):
        blobs.read(blobs.add(b"four"), 3)


def test_links_are_read_but_never_written_or_removed_through(blobs: BlobStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"linked")
    linked = digest(b"linked")
    blobs.tree.make()
    blobs.path(linked).symlink_to(outside)
    os.utime(outside, (0, 0))
    assert blobs.read(linked, 10) == b"linked"
    assert blobs.add(b"linked") == linked
    assert blobs.touch(linked)
    assert outside.stat().st_mtime == 0
    assert blobs.remove(linked)
    assert outside.read_bytes() == b"linked"
    assert not blobs.remove(linked)


def test_a_dangling_link_is_replaced_not_followed(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.tree.make()
    blobs.path(digest(b"new")).symlink_to(tmp_path / "nowhere")
    blobs.add(b"new")
    assert not (tmp_path / "nowhere").exists()
    assert not blobs.path(digest(b"new")).is_symlink()


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").write_bytes(b"x")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    tree = disk.Tree(tmp_path / "tree")
    path = tree.root / "link" / "f"
    for action in (tree.remove, tree.touch, lambda p: tree.write(p, b"y", temps=tree)):
        with pytest.raises(StoreError, match="symbolic link"):
            action(path)
    assert (tmp_path / "outside" / "f").read_bytes() == b"x"
    assert sorted(p.name for p in tree.root.iterdir()) == ["link"]


def test_paths_cannot_leave_a_tree(tmp_path: Path) -> None:
    tree = disk.Tree(tmp_path / "tree")
    with pytest.raises(StoreError, match="must not contain"):
        tree.write(tree.root / "a" / ".." / ".." / "f", b"", temps=tree)


def test_write_replaces_a_file_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    disk.write(path, b"1", 0o600)
    disk.write(path, b"2", 0o600)
    assert path.read_bytes() == b"2"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]


def test_order_of_system_calls(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(disk, "before_change_hook", lambda call, subject: calls.append(call))
    blobs.add(b"x")
    assert calls == ["mkdir", "fsync", "mkdir", "fsync", "create", "write", "fsync", "rename", "fsync"]


def test_require_space(blobs: BlobStore) -> None:
    with pytest.raises(StoreError, match=r"not enough disk space for the model: need 1000 TB, have"):
        blobs.require_space(10**15)


def test_error_for_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"a file")
    with pytest.raises(StoreError, match=r"cannot create the folder .*: a file or a symbolic link is where"):
        BlobStore(tmp_path / "models" / "blobs").add(b"x")


def test_error_for_a_full_disk(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(call: str, subject: str) -> None:
        if call == "write":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "before_change_hook", full)
    with pytest.raises(StoreError, match="no space left on the disk"):
        blobs.add(b"x")
    assert files(blobs) == []
