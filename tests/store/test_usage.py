"""Disk usage: shared blobs count once, sparse files by their disk blocks."""

from __future__ import annotations

from pathlib import Path

from support.ggufs import gguf
from support.stores import create, tiny

from ollama_nb.api.names import ModelName
from ollama_nb.store.store import Store
from ollama_nb.store.usage import FileTotals, ModelUsage, usage


def test_shared_blobs_count_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    base = tiny(store, "base", system="shared")
    create(store, "child", base=base, template="own")
    store.copy(ModelName("child"), ModelName("twin"))
    create(store, "alone", files={"x.gguf": gguf(data=bytes(999))})
    found = usage(store)
    sizes = {model.name: model for model in found.models}
    assert list(sizes) == ["alone:latest", "base:latest", "child:latest", "twin:latest"]
    assert sizes["base:latest"].bytes == base.size
    assert sizes["base:latest"].own == 0, "child shares its config, too"
    assert sizes["twin:latest"] == ModelUsage("twin:latest", sizes["child:latest"].bytes, 0)
    assert sizes["alone:latest"].own == len(gguf(data=bytes(999))), "all but the config, which is base's"
    files = list(store.blobs.root.iterdir())
    assert found.blobs == FileTotals(len(files), sum(path.stat().st_size for path in files))
    assert found.unused == found.partial == FileTotals()
    assert found.free > 0


def test_unused_and_unfinished_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    tiny(store, "m")
    store.blobs.add(b"unused")
    with (store.blobs.root / f"sha256-{'a' * 64}-partial").open("wb") as file:
        file.truncate(1 << 40)
    (store.root / "sha256-77").write_bytes(b"left")
    found = usage(store)
    assert found.unused == FileTotals(1, 6)
    assert found.partial.files == 2
    assert found.partial.bytes < 1 << 20, "holes of a sparse file do not count"


def test_a_missing_store(tmp_path: Path) -> None:
    found = usage(Store(tmp_path / "none"))
    assert (found.models, found.blobs) == ((), FileTotals())
    assert not (tmp_path / "none").exists()
