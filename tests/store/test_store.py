"""The store: names on disk, damaged models, deletion and pruning."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ggufs import gguf
from support.stores import check_sound, create, digest_of, published, snapshot, tiny

from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import BadRequest, ModelNotFound, OllamaError, StoreError
from ollama_nb.store.manifest import config_layer, layer
from ollama_nb.store.store import Store


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def manifest_path(store: Store, text: str) -> Path:
    return store.root / "manifests" / Path(*name(text).parts)


def age(path: Path, seconds: float = 7200) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)


def test_a_missing_store_is_empty(store: Store) -> None:
    assert store.names() == ()
    assert store.models() == []
    assert store.prune() == 0
    store.fix_legacy_names()
    with pytest.raises(ModelNotFound, match="model 'x:latest' not found"):
        store.resolve(name("x"))
    with pytest.raises(ModelNotFound):
        store.delete(name("x"))
    with pytest.raises(ModelNotFound):
        store.copy(name("x"), name("y"))
    assert not store.root.exists()


def test_resolve(store: Store) -> None:
    model = tiny(
        store, "me/m:8b", template="{{ .Prompt }}", system="Be brief.", licenses=("MIT", "x"), parameters={"top_k": 3}
    )
    assert model.name == name("me/m:8b")
    assert model.weights == store.blobs.path(digest_of(gguf()))
    assert (model.template, model.system, model.licenses) == ("{{ .Prompt }}", "Be brief.", ("MIT", "x"))
    assert model.params == {"top_k": 3}
    assert model.digest == digest_of(manifest_path(store, "me/m:8b").read_bytes()).hex
    assert model.size == sum(item.size for item in (*model.manifest.layers, model.manifest.config))
    header = store.gguf(model)
    assert header is not None
    assert header.architecture == "test"
    assert store.gguf(model) is header
    verbose = store.gguf(model, arrays=True)
    assert verbose is not None
    assert verbose.metadata["tokenizer.ggml.tokens"] == ["a", "b", "你"]


def test_old_prompt_layers_are_templates_and_foreign_layers_are_kept(store: Store) -> None:
    model = tiny(store, "m")
    prompt, other = store.blobs.add(b"{{ .Prompt }}!"), store.blobs.add(b"?")
    layers = [*model.manifest.layers, layer("prompt", prompt, 14), layer("embed", other, 1)]
    store.write_manifest(name("m"), model.manifest.config, layers)
    again = store.resolve(name("m"))
    assert again.template == "{{ .Prompt }}!"
    assert again.manifest.layers[-1].kind == "embed"


def test_models_are_sorted_newest_first(store: Store) -> None:
    for text, seconds in (("a", 50), ("b", 10), ("c", 90)):
        tiny(store, text, system=text)
        age(manifest_path(store, text), seconds)
    assert [model.name.model for model in store.models()] == ["b", "a", "c"]


def test_names_are_case_insensitive(store: Store) -> None:
    tiny(store, "Example.com/Team/Llama3:8B-Q4")
    tiny(store, "plain")
    assert store.canonical(name("example.COM/team/llama3:8b-q4")).full == "Example.com/Team/Llama3:8B-Q4"
    assert store.resolve(name("PLAIN")).name.short == "plain:latest"
    assert store.exists(name("Plain:LATEST"))
    assert store.canonical(name("plain:other")).short == "plain:other"
    assert store.canonical(name("team/LLAMA3")).short == "Team/Llama3:latest"
    tiny(store, "PLAIN", system="again")
    assert [n.short for n in store.names()] == ["Example.com/Team/Llama3:8B-Q4", "plain:latest"]


def test_two_spellings_on_disk(store: Store) -> None:
    tiny(store, "m")
    shutil.copytree(manifest_path(store, "m").parent, manifest_path(store, "M").parent)
    assert store.canonical(name("m")).model == "m"
    assert store.canonical(name("M")).model == "M"


def test_copy_shares_blobs(store: Store) -> None:
    tiny(store, "a", system="s")
    store.copy(name("A"), name("ns/b:1"))
    assert manifest_path(store, "a").read_bytes() == manifest_path(store, "ns/b:1").read_bytes()
    before = snapshot(store.root)
    store.copy(name("a"), name("A"))
    assert snapshot(store.root) == before


def test_copy_holds_the_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(store, "a", system="start")
    read = Store._read_manifest

    def probed(self: Store, source: ModelName) -> tuple[bytes, float]:
        folder = os.open(store.root, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(folder)
        return read(self, source)

    monkeypatch.setattr(Store, "_read_manifest", probed)
    store.copy(name("a"), name("b"))


def test_copy_over_a_model_removes_its_own_blobs(store: Store) -> None:
    tiny(store, "a")
    tiny(store, "b", system="only b's")
    store.copy(name("a"), name("b"))
    assert not store.blobs.has(digest_of(b"only b's"))
    check_sound(store.root)


def test_delete_keeps_shared_blobs(store: Store) -> None:
    tiny(store, "ns/a", system="shared", template="{{ .Prompt }}")
    tiny(store, "b", system="shared")
    store.delete(name("NS/A"))
    assert [n.short for n in store.names()] == ["b:latest"]
    assert not manifest_path(store, "ns/a").parent.parent.exists()
    assert store.blobs.has(digest_of(b"shared"))
    assert not store.blobs.has(digest_of(b"{{ .Prompt }}"))
    check_sound(store.root)
    store.delete(name("b"))
    assert snapshot(store.root) == {}
    assert not (store.root / "manifests").exists()


def test_replacing_a_model_removes_its_old_layers(store: Store) -> None:
    tiny(store, "m", system="one")
    tiny(store, "m", system="two")
    assert not store.blobs.has(digest_of(b"one"))
    keeping = Store(store.root, noprune=True)
    tiny(keeping, "m", system="three")
    assert store.blobs.has(digest_of(b"two"))


@pytest.mark.parametrize("junk", [b"", b"{", b"\x00" * 99, b"[]", b"{}", b'{"config":{"digest":"sha256:x"}}'])
def test_an_invalid_manifest_affects_its_model_only(store: Store, junk: bytes) -> None:
    tiny(store, "good", system="s")
    path = manifest_path(store, "bad")
    path.parent.mkdir(parents=True)
    path.write_bytes(junk)
    assert [model.name.model for model in store.models()] == ["good"]
    assert store.resolve(name("good")).system == "s"
    with pytest.raises(StoreError, match="model 'bad:latest' is damaged"):
        store.resolve(name("bad"))
    store.delete(name("bad"))
    assert store.names() == (name("good"),)
    check_sound(store.root)


def test_missing_and_damaged_blobs(store: Store) -> None:
    model = tiny(store, "m", parameters={"top_k": 1})
    params = next(item for item in model.manifest.layers if item.kind == "params")
    store.blobs.path(params.digest).write_bytes(b"[")
    with pytest.raises(StoreError, match="model 'm:latest' is damaged: the params layer is not valid JSON"):
        store.resolve(name("m"))
    store.blobs.path(params.digest).unlink()
    with pytest.raises(StoreError, match=r"is damaged: blob .* not found; pull or create it again"):
        store.resolve(name("m"))
    assert store.models() == []


def test_a_manifest_is_not_published_without_its_blobs(store: Store) -> None:
    config = config_layer(store.blobs.add(b"{}"), 2)
    with pytest.raises(StoreError, match="is missing"):
        store.write_manifest(name("m"), config, [layer("model", Digest("0" * 64), 5)])
    with pytest.raises(OllamaError):
        store.put_manifest(name("m"), b"junk")
    assert store.names() == ()


def test_other_files_are_ignored(store: Store) -> None:
    tiny(store, "m")
    host = store.root / "manifests" / "registry.ollama.ai"
    (host / "library" / "m" / "deeper").mkdir()
    (host / "library" / "m" / "deeper" / "latest").write_bytes(b"x")
    (host / "library" / "m" / ".DS_Store").write_bytes(b"x")
    (host / "stray").write_bytes(b"x")
    os.mkfifo(host / "library" / "m" / "pipe")
    assert store.names() == (name("m"),)
    with pytest.raises(ModelNotFound):
        store.resolve(name("m:pipe"))


def test_prune_removes_old_unused_files(store: Store) -> None:
    tiny(store, "m", system="used")
    old, young = store.blobs.add(b"old"), store.blobs.add(b"young")
    for junk in ("sha256-123", f"sha256-{'a' * 64}-partial", f"sha256-{'a' * 64}-partial-0", "junk", "sha256-456"):
        (store.blobs.root / junk).write_bytes(b"x")
    (store.root / "sha256-789").write_bytes(b"an unfinished manifest")
    (store.root / "notes.txt").write_bytes(b"the user's own")
    (store.root / "manifests" / "h" / "n").mkdir(parents=True)
    for path in (*store.blobs.root.iterdir(), store.root / "sha256-789", store.root / "notes.txt"):
        if path.name not in (young.filename, "sha256-456"):
            age(path)
    assert store.prune() == 6
    assert not store.blobs.has(old)
    assert store.blobs.has(young)
    assert (store.blobs.root / "sha256-456").exists()
    assert (store.root / "notes.txt").exists()
    assert not (store.root / "manifests" / "h").exists()
    check_sound(store.root)
    assert store.resolve(name("m")).system == "used"


def test_prune_keeps_everything_if_a_manifest_is_invalid_or_noprune_is_set(store: Store) -> None:
    tiny(store, "m")
    age(store.blobs.path(store.blobs.add(b"old")))
    manifest_path(store, "m:bad").write_bytes(b"{")
    before = snapshot(store.root)
    assert store.prune() == 0
    manifest_path(store, "m:bad").unlink()
    assert Store(store.root, noprune=True).prune() == 0
    assert before.keys() - snapshot(store.root).keys() == {"manifests/registry.ollama.ai/library/m/bad"}
    assert store.prune() == 1


def hide_by_link(store: Store, path: Path) -> Callable[[], object]:
    """Replace a manifest or a folder of manifests by a link to a place that is missing, as of an unmounted disk."""
    moved = store.root.parent / "moved"
    path.rename(moved)
    path.symlink_to(store.root.parent / "not-mounted")

    def restore() -> None:
        path.unlink()
        moved.rename(path)

    return restore


def overwrite(junk: bytes) -> Callable[[Store, Path], Callable[[], object]]:
    def damage(store: Store, path: Path) -> Callable[[], object]:
        kept = path.read_bytes()
        path.write_bytes(junk)
        return lambda: path.write_bytes(kept)

    return damage


def give_invalid_name(store: Store, path: Path) -> Callable[[], object]:
    moved = path.rename(path.with_name("not a tag"))
    return lambda: moved.rename(path)


DAMAGES: dict[str, Callable[[Store, Path], Callable[[], object]]] = {
    "empty": overwrite(b""),
    "cut": overwrite(b'{"schemaVersion": 2, "layers": ['),
    "an index": overwrite(b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:%s", "size": 1}]}' % (b"1" * 64)),
    "other types": overwrite(b'{"config": {"digest": 5}, "layers": {}}'),
    "link": hide_by_link,
    "link to a folder": lambda store, path: hide_by_link(store, path.parent),
    "invalid name": give_invalid_name,
}


def pulled_over(store: Store) -> None:
    tiny(store, "fresh", system="new")
    store.put_manifest(name("m"), manifest_path(store, "fresh").read_bytes())


REMOVING: dict[str, Callable[[Store], object]] = {
    "rm": lambda store: store.delete(name("m")),
    "create": lambda store: tiny(store, "m", system="new"),
    "cp": lambda store: store.copy(name("n"), name("m")),
    "pull": pulled_over,
    "prune": lambda store: store.prune(),
}


@pytest.mark.parametrize("action", REMOVING)
@pytest.mark.parametrize("damage", DAMAGES)
def test_blobs_that_an_unreadable_manifest_may_use_are_kept(
    store: Store, damage: str, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F13: the other model works again when its manifest does."""
    tiny(store, "m", system="shared")
    tiny(store, "n", system="other")
    store.copy(name("m"), name("kept:one"))
    for path in store.blobs.root.iterdir():
        age(path)
    restore = DAMAGES[damage](store, manifest_path(store, "kept:one"))
    before = {*store.blobs.digests()}
    assert name("m") in store.names()
    REMOVING[action](store)
    assert before <= {*store.blobs.digests()}
    assert "no blobs are removed, because a manifest cannot be read" in caplog.text
    assert "not-mounted" not in caplog.text
    assert store.names()[-1] == name("n")
    restore()
    assert store.resolve(name("kept:one")).system == "shared"
    store.delete(name("kept:one"))
    check_sound(store.root)


def test_legacy_names(store: Store) -> None:
    added = store.blobs.add(b"x")
    store.blobs.path(added).rename(store.blobs.root / f"sha256:{added.hex}")
    store.fix_legacy_names()
    assert store.blobs.has(added)


def test_links_in_the_manifests_are_not_written_or_deleted_through(store: Store, tmp_path: Path) -> None:
    tiny(store, "m")
    outside = tmp_path / "outside"
    shutil.move(store.root / "manifests" / "registry.ollama.ai", outside)
    (store.root / "manifests" / "registry.ollama.ai").symlink_to(outside)
    (store.root / "manifests" / "dangling").symlink_to(tmp_path / "nowhere")
    (store.root / "manifests" / "loop").symlink_to(store.root / "manifests" / "loop")
    before = snapshot(outside)
    assert store.names() == (name("m"),)
    for action in (lambda: store.delete(name("m")), lambda: store.copy(name("m"), name("n"))):
        with pytest.raises(StoreError, match="symbolic link"):
            action()
    assert snapshot(outside) == before
    assert store.prune() == 0
    assert snapshot(outside) == before


def test_a_linked_models_folder_works(tmp_path: Path) -> None:
    (tmp_path / "disk" / "blobs").mkdir(parents=True)
    (tmp_path / "big").mkdir()
    (tmp_path / "disk" / "blobs").rmdir()
    (tmp_path / "disk" / "blobs").symlink_to(tmp_path / "big")
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    store = Store(tmp_path / "models")
    tiny(store, "m")
    assert store.resolve(name("m")).config.model_family == "test"
    assert len(list((tmp_path / "big").iterdir())) == 2
    store.delete(name("m"))
    assert list((tmp_path / "big").iterdir()) == []


def test_error_for_an_unreadable_models_folder(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"a file")
    store = Store(tmp_path / "models")
    for action in (
        store.names,
        store.models,
        lambda: store.resolve(name("m")),
        lambda: store.delete(name("m")),
        lambda: tiny(store, "m"),
    ):
        with pytest.raises(StoreError, match="models"):
            action()
    assert (tmp_path / "models").read_bytes() == b"a file"


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from ollama_nb.api.names import ModelName
from ollama_nb.errors import StoreError
from ollama_nb.store.store import Store
os.setgroups([]) if os.getuid() == 0 else None
os.setgid(65534) if os.getuid() == 0 else None
os.setuid(65534) if os.getuid() == 0 else None
store = Store(Path(sys.argv[1]))
for action in (store.names, lambda: store.delete(ModelName.parse("m")), lambda: store.blobs.add(b"x")):
    try:
        print(action())
    except StoreError as error:
        print(error.message)
"""


def as_unprivileged_user(root: Path) -> list[str]:
    """Run names, delete and add as an unprivileged user and return the errors (the tests may run as root)."""
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED, root], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs to drop rights")
def test_folders_without_permissions(store: Store) -> None:
    tiny(store, "m")
    for folder in (*store.root.parents[:3], store.root):
        folder.chmod(0o755)
    if not all(folder.stat().st_mode & stat.S_IXOTH for folder in store.root.parents):
        pytest.skip("other users cannot enter a parent of the test folder")
    before = snapshot(store.root)
    listed, deleted, added = as_unprivileged_user(store.root)
    assert "'m'" in listed
    assert deleted.endswith("permission denied")
    assert added.endswith("permission denied")
    for closed in (store.root, store.root.parent):
        closed.chmod(0o700)
        assert [line[-17:] for line in as_unprivileged_user(store.root)] == ["permission denied"] * 3
    assert snapshot(store.root) == before


def test_a_model_that_is_replaced_while_it_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(store, "m", system="one")
    read, replaced = store.blobs.read, []

    def read_late(digest: Digest, limit: int) -> bytes:
        if not replaced:
            replaced.append(True)
            tiny(Store(store.root), "m", system="two")
        return read(digest, limit)

    monkeypatch.setattr(store.blobs, "read", read_late)
    assert store.resolve(name("m")).system == "two"


def test_concurrent_operations_keep_the_store_valid(store: Store) -> None:
    """Each worker shares blobs with the others; no manifest may refer to a removed blob."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        mine = Store(store.root)
        try:
            for turn in range(6):
                try:
                    tiny(mine, f"m{number}", system=f"shared {turn % 2}")
                    mine.copy(name(f"m{number}"), name(f"copy{number}"))
                    mine.delete(name(f"m{number}"))
                except StoreError as error:
                    assert "is missing" in error.message  # another one deleted it first: refused, not published
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    check_sound(store.root)


@given(st.text(max_size=20))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leaves_the_store(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path / "models")
    try:
        path = store._path(store.canonical(name(text)))
    except BadRequest:
        return
    assert path.resolve().is_relative_to((tmp_path / "models" / "manifests").resolve())


def test_published_reads_back(store: Store) -> None:
    tiny(store, "m")
    assert list(published(store.root)) == ["manifests/registry.ollama.ai/library/m/latest"]
    assert create(store, "m", files={"x.gguf": gguf()})[-1] == "success"
