"""Further stores that are only read: their models are there, nothing is ever written to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.ggufs import gguf
from support.stores import check_sound, create, snapshot, tiny

from ollama_nb.api.names import ModelName
from ollama_nb.errors import Forbidden, ModelNotFound, StoreError
from ollama_nb.settings import SYSTEM_MODELS, Settings
from ollama_nb.store.store import Store
from ollama_nb.store.usage import usage

THEIRS, MINE, BOTH = ModelName("theirs"), ModelName("mine"), ModelName("both")


@pytest.fixture
def theirs(tmp_path: Path) -> Store:
    store = Store(tmp_path / "system")
    create(store, "theirs", files={"m.gguf": gguf(data=os.urandom(5000))}, system="of the system", template="t")
    tiny(store, "both", system="of the system")
    return store


@pytest.fixture
def store(theirs: Store, tmp_path: Path) -> Store:
    made = Store(tmp_path / "models", others=[theirs.root, tmp_path / "models", tmp_path / "none"])
    tiny(made, "both", system="mine")
    return made


def test_their_models_are_there(store: Store, theirs: Store) -> None:
    before = snapshot(theirs.root)
    found = store.resolve(ModelName("THEIRS"))
    assert found.weights is not None and found.weights.is_relative_to(theirs.root)
    assert found.system == "of the system" and store.gguf(found)
    assert store.resolve(BOTH).system == "mine"
    assert sorted(model.name.short for model in store.models()) == ["both:latest", "theirs:latest"]
    assert [name.short for name in store.names()] == ["both:latest"]
    assert [model.name for model in usage(store).models] == ["both:latest"], "what takes room here"
    with pytest.raises(ModelNotFound):
        store.resolve(ModelName("none"))
    assert snapshot(theirs.root) == before


def test_they_are_not_removed(store: Store, theirs: Store) -> None:
    before = snapshot(theirs.root)
    with pytest.raises(Forbidden, match=r"model 'theirs:latest' is in .*system, which this program only reads"):
        store.delete(THEIRS)
    store.delete(BOTH)
    assert store.resolve(BOTH).system == "of the system"
    with pytest.raises(ModelNotFound):
        store.delete(ModelName("none"))
    assert store.prune() == 0
    assert snapshot(theirs.root) == before


def test_a_copy_brings_the_blobs_here(store: Store, theirs: Store) -> None:
    before = snapshot(theirs.root)
    store.copy(THEIRS, MINE)
    store.copy(THEIRS, THEIRS)  # makes it ours
    check_sound(store.root)
    found = store.resolve(MINE)
    assert found.weights is not None and found.weights.is_relative_to(store.root)
    assert found.digest == theirs.resolve(THEIRS).digest
    store.delete(THEIRS)
    assert snapshot(theirs.root) == before


def test_create_from_one_of_them(store: Store, theirs: Store) -> None:
    create(store, "mine", base=store.resolve(THEIRS), system="new")
    check_sound(store.root)
    assert store.resolve(MINE).system == "new"
    assert store.resolve(MINE).template == "t"


def test_uploads_and_pulls_find_their_blobs(store: Store, theirs: Store) -> None:
    weights = theirs.resolve(THEIRS).weights_digest
    assert weights is not None and store.blobs.has(weights)
    assert not store.blobs.path(weights).exists()
    assert store.blobs.touch(weights)
    assert store.blobs.path(weights).read_bytes() == theirs.blobs.path(weights).read_bytes()


def test_a_damaged_blob_does_not_come_over(store: Store, theirs: Store) -> None:
    path = theirs.resolve(THEIRS).weights
    assert path is not None
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StoreError, match="is missing"):
        store.copy(THEIRS, MINE)
    check_sound(store.root)
    assert not store.exists(MINE)


def test_what_is_written_here_has_its_bytes_here(store: Store, theirs: Store) -> None:
    """Even where another store has them already: that one may go at any time."""
    weights = theirs.resolve(THEIRS).weights
    assert weights is not None
    digest = store.blobs.add_file(weights)
    assert store.blobs.path(digest).is_file()


def test_a_store_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "models", others=[tmp_path / "file"])
    tiny(store, "m")
    assert [model.name.short for model in store.models()] == ["m:latest"]
    with pytest.raises(ModelNotFound):
        store.resolve(ModelName("none"))


def test_which_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings.from_env({"OLLAMA_NB_EXTRA_MODELS": f"/a{os.pathsep}{tmp_path}"})
    assert given.extra_models == (Path("/a"), tmp_path)
    assert Settings.from_env({"OLLAMA_NB_EXTRA_MODELS": ""}).extra_models == ()
    monkeypatch.setattr(os, "access", lambda path, mode: path == SYSTEM_MODELS[0] / "manifests")
    assert Settings.from_env({}).extra_models == SYSTEM_MODELS[:1]
