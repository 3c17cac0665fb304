"""The prefix cache on disk: files are read back exactly or not at all, and are evicted within the limit."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_nb import disk
from ollama_nb.engine.messages import Adapter
from ollama_nb.engine.prefix_store import (
    Prefix,
    PrefixStore,
    file_identity,
    state_identity,
)

MADE_BY = {"build": "llama.cpp 1", "model": "sha256-1", "kv_type": "f16"}
STATE = np.arange(200, dtype=np.uint8)
TOKENS = [1, 500, 7, 1 << 20]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "nb" / "prefixes"


def open_store(folder: Path, cap: int = 1 << 20, **other: str) -> PrefixStore:
    return PrefixStore(folder, MADE_BY | other, cap)


def write(store: PrefixStore, tokens: list[int] = TOKENS, state: Any = STATE) -> Prefix:
    prefix = store.store(tokens, state, 0.25)
    assert prefix is not None
    return prefix


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"key"}


def test_a_prefix_is_read_back_by_another_process(folder: Path) -> None:
    prefix = write(open_store(folder))
    assert open_store(folder).known == (prefix,) == (Prefix(prefix.name, TOKENS, prefix.size, 0.25),)
    state = open_store(folder).load(prefix)
    assert state is not None and np.array_equal(state, STATE)
    assert prefix.size == (folder / prefix.name).stat().st_size


def test_only_the_owner_has_access(folder: Path) -> None:
    prefix = write(open_store(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in (prefix.name, "key")} == {0o600}


def test_opening_a_store_creates_no_folder(folder: Path) -> None:
    assert open_store(folder).known == () and not folder.exists()


def test_a_flipped_bit_is_a_miss_and_removes_the_file(folder: Path) -> None:
    store = open_store(folder)
    prefix = write(store)
    path = folder / prefix.name
    whole = path.read_bytes()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        assert store.load(prefix) is None, f"byte {at}"
        assert not path.exists()
    path.write_bytes(whole)
    assert store.load(prefix) is not None


@pytest.mark.parametrize("cut", [0, 1, 11, 12, 100, -33, -32, -1])
def test_a_truncated_file_is_a_miss(folder: Path, cut: int) -> None:
    store = open_store(folder)
    prefix = write(store)
    path = folder / prefix.name
    path.write_bytes(path.read_bytes()[:cut])
    assert open_store(folder).known == () and not path.exists(), "by its header"
    path.write_bytes(b"x" * prefix.size)
    assert store.load(prefix) is None and not path.exists()


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"{}", b"null", b"\xff", b'{"made_by":1}', b'{"tokens":1e99}', b"[" * 4000],
    ids=lambda header: header[:12].decode("latin-1"),
)
def test_an_invalid_header_removes_the_file(folder: Path, header: bytes) -> None:
    store = open_store(folder)
    path = folder / write(store).name
    path.write_bytes(b"nbprefix" + len(header).to_bytes(4, "little") + header + bytes(99))
    assert open_store(folder).known == () and not path.exists()


def test_a_file_under_another_name_is_a_miss(folder: Path) -> None:
    store = open_store(folder)
    one, other = write(store), write(store, [4, 3, 2, 1])
    (folder / one.name).replace(folder / other.name)
    assert store.load(other) is None


@pytest.mark.parametrize("changed", [{"build": "llama.cpp 2"}, {"model": "sha256-2"}, {"kv_type": "q8_0"}])
def test_files_of_another_build_or_model_are_ignored(folder: Path, changed: dict[str, str]) -> None:
    prefix, other = write(open_store(folder)), open_store(folder, **changed)
    assert other.known == () and open_store(folder).known == (prefix,)
    assert other.load(prefix) is None


def test_a_file_signed_with_another_key_is_a_miss(folder: Path, tmp_path: Path) -> None:
    theirs = write(open_store(tmp_path / "theirs"))
    write(open_store(folder), [9, 9])
    shutil.copy(tmp_path / "theirs" / theirs.name, folder / theirs.name)
    assert open_store(folder).load(theirs) is None


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_a_broken_key_is_replaced(folder: Path, key: bytes) -> None:
    store = open_store(folder)
    prefix = write(store)
    (folder / "key").write_bytes(key)
    assert store.load(prefix) is None
    prefix = write(store)
    assert len((folder / "key").read_bytes()) == 32 and store.load(prefix) is not None


def test_links_and_pipes_are_not_followed(folder: Path, tmp_path: Path) -> None:
    store = open_store(folder)
    prefix = write(store)
    path, elsewhere = folder / prefix.name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert store.load(prefix) is None and elsewhere.exists() and not path.is_symlink()
    os.mkfifo(path)
    assert open_store(folder).known == () and store.load(prefix) is None


def test_the_least_recently_used_files_are_evicted(folder: Path) -> None:
    size = write(open_store(folder)).size
    shutil.rmtree(folder)
    store = open_store(folder, cap=3 * size)
    first, second, third = (write(store, [n, *TOKENS[1:]]) for n in range(3))
    for age, prefix in enumerate((third, second, first)):
        os.utime(folder / prefix.name, (time.time() - 100 - age,) * 2)
    assert store.load(first) is not None, "now it is the most recently used"
    fourth = write(store, [9, *TOKENS[1:]])
    assert names(folder) == {first.name, third.name, fourth.name}
    assert store.load(second) is None


def test_a_state_above_the_limit_is_not_written(folder: Path) -> None:
    assert open_store(folder, cap=100).store(TOKENS, STATE, 0.25) is None and not folder.exists()


def test_expired_files_are_removed(folder: Path) -> None:
    store = open_store(folder)
    prefix = write(store)
    os.utime(folder / prefix.name, (time.time() - 8 * 86_400,) * 2)
    assert open_store(folder, model="sha256-2").known == () and names(folder) == set(), "by any store"


def test_a_full_disk_and_an_impossible_folder_disable_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")(1 << 40, 1 << 40, 1 << 20)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert open_store(folder).store(TOKENS, STATE, 0.25) is None
    folder.rmdir()
    folder.write_text("a file")
    assert open_store(folder).known == () and open_store(folder).store(TOKENS, STATE, 0.25) is None


class Killed(BaseException):
    """Simulates a process that is killed in a system call."""


@pytest.mark.parametrize("at", range(8))
def test_a_killed_writer_leaves_no_partial_file(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    calls = iter(range(99))

    def before(call: str, subject: str) -> None:
        if next(calls) == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(disk, "before_change_hook", before)
        try:
            open_store(folder).store(TOKENS, STATE, 0.25)
        except Killed:
            pass
        else:
            pytest.fail("a system call is missing its hook")
    for prefix in open_store(folder).known:
        assert open_store(folder).load(prefix) is not None
    assert len(names(folder)) <= 1


def test_a_model_is_identified_by_its_digest_or_its_file(tmp_path: Path) -> None:
    assert file_identity("/store/blobs/sha256-12ab") == "sha256-12ab"
    path = tmp_path / "model.gguf"
    path.write_text("one")
    first = file_identity(str(path))
    path.write_text("another")
    assert file_identity(str(path)) != first and "model" not in first
    assert state_identity("1", "sha256-1", (Adapter("/store/sha256-2", 0.5),), gpu=False) == {
        "build": "1", "model": "sha256-1", "adapters": [["sha256-2", 0.5]], "gpu": False
    }  # fmt: skip
