"""fsck: damaged files are found and moved out of the store, and nothing else changes."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from support.ggufs import gguf
from support.stores import check_sound, create, snapshot, tiny

from ollama_nb import disk
from ollama_nb.api.events import Progress
from ollama_nb.api.names import ModelName
from ollama_nb.errors import Cancelled
from ollama_nb.store import check
from ollama_nb.store.check import CheckProblem, CheckResult
from ollama_nb.store.manifest import config_layer, layer
from ollama_nb.store.store import Store


@pytest.fixture
def store(store: Store) -> Store:
    """Two models that share one layer."""
    create(store, "a", files={"m.gguf": gguf(data=os.urandom(200_000))}, system="s")
    tiny(store, "b", system="s")
    return store


def run_check(store: Store, aside: Path | None = None) -> CheckResult:
    return check.check(store, aside=aside, report=lambda line: None, cancelled=threading.Event())


def weights(store: Store, name: str) -> Path:
    found = store.resolve(ModelName.parse(name)).weights
    assert found is not None
    return found


def flip_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_valid_store(store: Store) -> None:
    lines: list[Progress] = []
    found = check.check(store, aside=None, report=lines.append, cancelled=threading.Event())
    total = sum(path.stat().st_size for path in store.blobs.root.iterdir())
    assert found == CheckResult(manifests=2, blobs=len(list(store.blobs.digests())), bytes=total)
    assert [line.completed for line in lines] == sorted(line.completed for line in lines)
    assert lines[-1] == Progress("checking blobs", completed=total, total=total)


def test_an_empty_or_missing_store(tmp_path: Path) -> None:
    assert run_check(Store(tmp_path / "none")) == CheckResult()
    assert not (tmp_path / "none").exists()


def test_flipped_bits_are_found(store: Store) -> None:
    """One bit is flipped at the start, in the middle and at the end of each blob."""
    for path in sorted(store.blobs.root.iterdir()):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            flip_bit(path, at)
            problems = run_check(store).problems
            assert problems[0].kind == "blob" and problems[0].what.removeprefix("sha256:") in path.name
            assert {problem.kind for problem in problems[1:]} == {"model"}
            path.write_bytes(whole)
    assert run_check(store).problems == []


def test_only_damaged_blobs_are_moved_and_must_be_pulled_again(store: Store, tmp_path: Path) -> None:
    path = weights(store, "a")
    flip_bit(path, 5000)
    before = snapshot(store.root)
    assert run_check(store).problems[0].moved is False
    assert snapshot(store.root) == before
    found = run_check(store, tmp_path / "aside")
    blob, model = found.problems
    assert (blob.kind, blob.moved) == ("blob", True)
    assert model == CheckProblem("model", "a:latest", f"its blob {path.name[7:19]} is damaged")
    assert snapshot(store.root) == {name: data for name, data in before.items() if path.name not in name}
    assert [file.name for file in (tmp_path / "aside").iterdir()] == [f"blobs-{path.name}"]
    (after,) = run_check(store).problems
    assert after.why == f"its blob {path.name[7:19]} is missing"


def test_damaged_manifests(store: Store, tmp_path: Path) -> None:
    """Only the damaged manifest is reported; nothing is pruned until it is moved away."""
    folder = store.root / "manifests/registry.ollama.ai/library"
    for name, data in {"junk": b"\x00\xff", "empty": b"", "list": b"[]", "bad name!": b"{}"}.items():
        (folder / name).mkdir()
        (folder / name / "latest").write_bytes(data)
    unused = store.blobs.path(store.blobs.add(b"unused"))
    os.utime(unused, (0, 0))
    assert sorted(model.name.short for model in store.models()) == ["a:latest", "b:latest"]
    found = run_check(store)
    assert sorted(Path(problem.what).parts[3] for problem in found.problems) == ["bad name!", "empty", "junk", "list"]
    assert store.prune() == 0 and unused.exists()
    assert all(problem.moved for problem in run_check(store, tmp_path / "aside").problems)
    assert len(list((tmp_path / "aside").iterdir())) == 4
    assert run_check(store).problems == []
    assert store.prune() == 1 and not unused.exists()
    check_sound(store.root)


def test_a_wrong_size_in_a_manifest(store: Store) -> None:
    """The blob is valid, but the manifest declares another size."""
    path = store.root / "manifests/registry.ollama.ai/library/b/latest"
    size = weights(store, "b").stat().st_size
    path.write_bytes(path.read_bytes().replace(f'"size":{size}'.encode(), f'"size":{size + 1}'.encode()))
    (problem,) = run_check(store).problems
    assert problem.why.endswith(f"has {size} bytes instead of {size + 1}")


@pytest.mark.parametrize("kind", ["model", "draft"])
def test_weights_that_are_not_gguf(store: Store, kind: str) -> None:
    false = store.blobs.add(b"GGUF" + bytes(100))
    config = store.blobs.add(b"{}")
    store.write_manifest(ModelName("false"), config_layer(config, 2), [layer(kind, false, 104)])
    (problem,) = run_check(store).problems
    assert (problem.kind, problem.what) == ("model", "false:latest")
    assert "not a usable GGUF" in problem.why


def test_links_are_moved_not_followed(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"other bytes")
    path = weights(store, "a")
    path.unlink()
    path.symlink_to(target)
    assert run_check(store, tmp_path / "aside").problems[0].moved
    assert target.read_bytes() == b"other bytes"
    assert not path.is_symlink()


def test_links_to_valid_blobs_are_valid(store: Store, tmp_path: Path) -> None:
    path = weights(store, "a")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert run_check(store).problems == []


def test_a_blob_that_was_repaired_during_the_check_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull replaces the damaged blob after it was hashed and before it is moved."""
    path = weights(store, "a")
    whole = path.read_bytes()
    flip_bit(path, 0)
    locked = disk.folder_lock

    def repaired_first(root: Path) -> object:
        path.unlink()
        path.write_bytes(whole)
        return locked(root)

    monkeypatch.setattr(disk, "folder_lock", repaired_first)
    assert run_check(store, tmp_path / "aside").problems[0].moved is False
    assert path.read_bytes() == whole


def test_cancelling(store: Store, tmp_path: Path) -> None:
    cancelled = threading.Event()
    before = snapshot(store.root)
    with pytest.raises(Cancelled):
        check.check(store, aside=tmp_path / "aside", report=lambda line: cancelled.set(), cancelled=cancelled)
    assert snapshot(store.root) == before


def test_moving_to_another_disk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is copied and removed where rename fails with EXDEV."""
    path = weights(store, "a")
    flip_bit(path, 3)
    broken = path.read_bytes()
    rename = os.rename

    def only_here(source: str, target: str | Path, **folders: int) -> None:
        if "dst_dir_fd" not in folders:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target, **folders)

    monkeypatch.setattr("os.rename", only_here)
    run_check(store, tmp_path / "aside")
    assert (tmp_path / "aside" / f"blobs-{path.name}").read_bytes() == broken
    assert not path.exists()


class Died(BaseException):
    """Simulates a kill; it is not caught anywhere."""


def test_a_repair_that_is_killed_loses_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repair is killed before each of its system calls: the damaged file is in one of the two places."""
    path = weights(store, "a")
    flip_bit(path, 7)
    broken, before = path.read_bytes(), snapshot(store.root)
    aside = tmp_path / "aside"
    for step in range(100):
        path.write_bytes(broken)
        shutil.rmtree(aside, ignore_errors=True)
        left = [step]

        def die(call: str, subject: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Died

        with monkeypatch.context() as patch:
            patch.setattr(disk, "before_change_hook", die)
            try:
                run_check(store, aside)
                died = False
            except Died:
                died = True
        places = [path, aside / f"blobs-{path.name}"]
        assert broken in [place.read_bytes() for place in places if place.exists()]
        others = {name: data for name, data in snapshot(store.root).items() if path.name not in name}
        assert others == {name: data for name, data in before.items() if path.name not in name}
        if not died:
            break
    assert step > 3 and not path.exists()
