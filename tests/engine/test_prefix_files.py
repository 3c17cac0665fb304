"""Prefix files: what was written comes back, and nothing else does."""

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
from ollama_nb.engine.adapters import Adapter
from ollama_nb.engine.prefix import Prefix
from ollama_nb.engine.prefix_files import PrefixFiles, file_identity, identity

MADE_BY = {"build": "llama.cpp 1", "model": "sha256-1", "kv_type": "f16"}
STATE = np.arange(200, dtype=np.uint8)
TOKENS = [1, 500, 7, 1 << 20]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "nb" / "prefixes"


def files(folder: Path, cap: int = 1 << 20, **other: str) -> PrefixFiles:
    return PrefixFiles(folder, MADE_BY | other, cap)


def write(store: PrefixFiles, tokens: list[int] = TOKENS, state: Any = STATE) -> Prefix:
    prefix = store.write(tokens, state, 0.25)
    assert prefix is not None
    return prefix


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"key"}


def test_what_was_written_comes_back_in_another_process(folder: Path) -> None:
    prefix = write(files(folder))
    assert files(folder).scan() == [prefix] == [Prefix(prefix.name, TOKENS, prefix.size, 0.25)]
    state = files(folder).read(prefix)
    assert state is not None and np.array_equal(state, STATE)
    assert prefix.size == (folder / prefix.name).stat().st_size


def test_only_the_owner_may_look(folder: Path) -> None:
    prefix = write(files(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in (prefix.name, "key")} == {0o600}


def test_nothing_is_made_by_looking(folder: Path) -> None:
    assert files(folder).scan() == [] and not folder.exists()


def test_any_flipped_bit_is_a_miss_and_the_file_is_gone(folder: Path) -> None:
    store = files(folder)
    prefix = write(store)
    path = folder / prefix.name
    whole = path.read_bytes()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        assert store.read(prefix) is None, f"byte {at}"
        assert not path.exists()
    path.write_bytes(whole)
    assert store.read(prefix) is not None


@pytest.mark.parametrize("cut", [0, 1, 11, 12, 100, -33, -32, -1])
def test_a_truncated_file_is_a_miss(folder: Path, cut: int) -> None:
    store = files(folder)
    prefix = write(store)
    path = folder / prefix.name
    path.write_bytes(path.read_bytes()[:cut])
    assert store.scan() == [] and not path.exists(), "its header tells"
    path.write_bytes(b"x" * prefix.size)
    assert store.read(prefix) is None and not path.exists()


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"{}", b"null", b"\xff", b'{"made_by":1}', b'{"tokens":1e99}', b"[" * 4000],
    ids=lambda header: header[:12].decode("latin-1"),
)
def test_a_header_that_is_none(folder: Path, header: bytes) -> None:
    store = files(folder)
    path = folder / write(store).name
    path.write_bytes(b"nbprefix" + len(header).to_bytes(4, "little") + header + bytes(99))
    assert store.scan() == [] and not path.exists()


def test_a_file_under_another_name_is_a_miss(folder: Path) -> None:
    store = files(folder)
    one, other = write(store), write(store, [4, 3, 2, 1])
    (folder / one.name).replace(folder / other.name)
    assert store.read(other) is None


@pytest.mark.parametrize("changed", [{"build": "llama.cpp 2"}, {"model": "sha256-2"}, {"kv_type": "q8_0"}])
def test_what_another_build_or_model_left_is_not_seen(folder: Path, changed: dict[str, str]) -> None:
    prefix, other = write(files(folder)), files(folder, **changed)
    assert other.scan() == [] and files(folder).scan() == [prefix]
    assert other.read(prefix) is None


def test_a_file_that_somebody_else_signed_is_a_miss(folder: Path, tmp_path: Path) -> None:
    theirs = write(files(tmp_path / "theirs"))
    write(files(folder), [9, 9])
    shutil.copy(tmp_path / "theirs" / theirs.name, folder / theirs.name)
    assert files(folder).read(theirs) is None


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_a_broken_key_is_replaced(folder: Path, key: bytes) -> None:
    store = files(folder)
    prefix = write(store)
    (folder / "key").write_bytes(key)
    assert store.read(prefix) is None
    prefix = write(store)
    assert len((folder / "key").read_bytes()) == 32 and store.read(prefix) is not None


def test_links_and_pipes_are_not_followed(folder: Path, tmp_path: Path) -> None:
    store = files(folder)
    prefix = write(store)
    path, elsewhere = folder / prefix.name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert store.read(prefix) is None and elsewhere.exists() and not path.is_symlink()
    os.mkfifo(path)
    assert store.scan() == [] and store.read(prefix) is None


def test_the_least_used_give_way(folder: Path) -> None:
    size = write(files(folder)).size
    shutil.rmtree(folder)
    store = files(folder, cap=3 * size)
    first, second, third = (write(store, [n, *TOKENS[1:]]) for n in range(3))
    for age, prefix in enumerate((third, second, first)):
        os.utime(folder / prefix.name, (time.time() - 100 - age,) * 2)
    assert store.read(first) is not None, "now it is the newest"
    fourth = write(store, [9, *TOKENS[1:]])
    assert names(folder) == {first.name, third.name, fourth.name}
    assert store.read(second) is None


def test_what_is_larger_than_all_of_it_is_not_written(folder: Path) -> None:
    assert files(folder, cap=100).write(TOKENS, STATE, 0.25) is None and not folder.exists()


def test_old_ones_go(folder: Path) -> None:
    store = files(folder)
    prefix = write(store)
    os.utime(folder / prefix.name, (time.time() - 8 * 86_400,) * 2)
    assert files(folder, model="sha256-2").scan() == [] and names(folder) == set(), "whoever looks"


def test_a_full_disk_and_a_folder_that_cannot_be_made_cost_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")(1 << 40, 1 << 40, 1 << 20)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert files(folder).write(TOKENS, STATE, 0.25) is None
    folder.rmdir()
    folder.write_text("a file")
    assert files(folder).scan() == [] and files(folder).write(TOKENS, STATE, 0.25) is None


class Killed(BaseException):
    """Stands for a process that ends within a system call."""


@pytest.mark.parametrize("at", range(8))
def test_a_writer_that_is_killed_leaves_nothing_half(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    calls = iter(range(99))

    def before(call: str, subject: str) -> None:
        if next(calls) == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(disk, "before_change_hook", before)
        try:
            files(folder).write(TOKENS, STATE, 0.25)
        except Killed:
            pass
        else:
            pytest.fail("a system call without hook")
    for prefix in files(folder).scan():
        assert files(folder).read(prefix) is not None
    assert len(names(folder)) <= 1


def test_a_model_is_known_by_its_digest_or_its_file(tmp_path: Path) -> None:
    assert file_identity("/store/blobs/sha256-12ab") == "sha256-12ab"
    path = tmp_path / "model.gguf"
    path.write_text("one")
    first = file_identity(str(path))
    path.write_text("another")
    assert file_identity(str(path)) != first and "model" not in first
    assert identity("1", "sha256-1", (Adapter("/store/sha256-2", 0.5),), gpu=False) == {
        "build": "1", "model": "sha256-1", "adapters": [["sha256-2", 0.5]], "gpu": False
    }  # fmt: skip
