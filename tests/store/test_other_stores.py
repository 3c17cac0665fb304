"""Additional read-only stores: their models are listed, and nothing is written to them."""

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

OTHER_NAME, MINE, BOTH = ModelName("theirs"), ModelName("mine"), ModelName("both")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    store = Store(tmp_path / "system")
    create(store, "theirs", files={"m.gguf": gguf(data=os.urandom(5000))}, system="of the system", template="t")
    tiny(store, "both", system="of the system")
    return store


@pytest.fixture
def store(other: Store, tmp_path: Path) -> Store:
    made = Store(tmp_path / "models", others=[other.root, tmp_path / "models", tmp_path / "none"])
    tiny(made, "both", system="mine")
    return made


def test_models_of_other_stores_are_listed(store: Store, other: Store) -> None:
    before = snapshot(other.root)
    found = store.resolve(ModelName("THEIRS"))
    assert found.weights is not None and found.weights.is_relative_to(other.root)
    assert found.system == "of the system" and store.gguf(found)
    assert store.resolve(BOTH).system == "mine"
    assert sorted(model.name.short for model in store.models()) == ["both:latest", "theirs:latest"]
    assert [name.short for name in store.names()] == ["both:latest"]
    assert [model.name for model in usage(store).models] == ["both:latest"], "only blobs of this store count"
    with pytest.raises(ModelNotFound):
        store.resolve(ModelName("none"))
    assert snapshot(other.root) == before


def test_models_of_other_stores_are_not_deleted(store: Store, other: Store) -> None:
    before = snapshot(other.root)
    with pytest.raises(Forbidden, match=r"model 'theirs:latest' is in .*system, which this program only reads"):
        store.delete(OTHER_NAME)
    store.delete(BOTH)
    assert store.resolve(BOTH).system == "of the system"
    with pytest.raises(ModelNotFound):
        store.delete(ModelName("none"))
    assert store.prune() == 0
    assert snapshot(other.root) == before


def test_copy_copies_the_blobs(store: Store, other: Store) -> None:
    before = snapshot(other.root)
    store.copy(OTHER_NAME, MINE)
    store.copy(OTHER_NAME, OTHER_NAME)  # copies it into this store
    check_sound(store.root)
    found = store.resolve(MINE)
    assert found.weights is not None and found.weights.is_relative_to(store.root)
    assert found.digest == other.resolve(OTHER_NAME).digest
    store.delete(OTHER_NAME)
    assert snapshot(other.root) == before


def test_create_from_a_model_of_another_store(store: Store, other: Store) -> None:
    create(store, "mine", base=store.resolve(OTHER_NAME), system="new")
    check_sound(store.root)
    assert store.resolve(MINE).system == "new"
    assert store.resolve(MINE).template == "t"


def test_uploads_and_pulls_use_blobs_of_other_stores(store: Store, other: Store) -> None:
    weights = other.resolve(OTHER_NAME).weights_digest
    assert weights is not None and store.blobs.has(weights)
    assert not store.blobs.path(weights).exists()
    assert store.blobs.touch(weights)
    assert store.blobs.path(weights).read_bytes() == other.blobs.path(weights).read_bytes()


def test_damaged_blobs_are_not_copied(store: Store, other: Store) -> None:
    path = other.resolve(OTHER_NAME).weights
    assert path is not None
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StoreError, match="is missing"):
        store.copy(OTHER_NAME, MINE)
    check_sound(store.root)
    assert not store.exists(MINE)


def test_new_models_have_their_own_blobs(store: Store, other: Store) -> None:
    """Even if another store has the blobs, because that store may disappear."""
    weights = other.resolve(OTHER_NAME).weights
    assert weights is not None
    digest = store.blobs.add_file(weights)
    assert store.blobs.path(digest).is_file()


def test_an_unreadable_store_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "models", others=[tmp_path / "file"])
    tiny(store, "m")
    assert [model.name.short for model in store.models()] == ["m:latest"]
    with pytest.raises(ModelNotFound):
        store.resolve(ModelName("none"))


def test_default_other_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings.from_env({"OLLAMA_NB_EXTRA_MODELS": f"/a{os.pathsep}{tmp_path}"})
    assert given.extra_models == (Path("/a"), tmp_path)
    assert Settings.from_env({"OLLAMA_NB_EXTRA_MODELS": ""}).extra_models == ()
    monkeypatch.setattr(os, "access", lambda path, mode: path == SYSTEM_MODELS[0] / "manifests")
    assert Settings.from_env({}).extra_models == SYSTEM_MODELS[:1]
