"""Export and import of tar archives, including hostile archives."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.ggufs import gguf
from support.stores import check_sound, create, digest_of, published, snapshot, tiny

from ollama_nb.api.names import ModelName
from ollama_nb.errors import BadRequest, Cancelled, CorruptModel, OllamaError, StoreError
from ollama_nb.store import archive
from ollama_nb.store.store import Store


@pytest.fixture
def store(store: Store) -> Store:
    """Two models, the second created from the first."""
    create(store, "ns/a", files={"m.gguf": gguf(data=bytes(range(256)) * 40)}, system="你好", licenses=("MIT",))
    create(store, "b:q4", base=store.resolve(ModelName.parse("ns/a")), template="{{ .Prompt }}")
    return store


def export(store: Store, path: Path, *names: str, **more: Any) -> None:
    models = [store.resolve(ModelName.parse(name)) for name in names]
    more = {"report": lambda line: None, "cancelled": threading.Event(), **more}
    archive.export(models, store.blobs, path, **more)


def import_archive(path: Path, folder: Path, as_: str = "", **more: Any) -> Store:
    target = Store(folder)
    more = {"report": lambda line: None, "cancelled": threading.Event(), **more}
    archive.import_models(path, target, as_=ModelName.parse(as_) if as_ else None, **more)
    return target


def test_export_and_import(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "out" / "models.tar"
    export(store, path, "ns/a", "b:q4")
    target = import_archive(path, tmp_path / "other")
    assert published(target.root) == published(store.root)
    assert snapshot(target.root) == snapshot(store.root)
    export(store, tmp_path / "again.tar", "ns/a", "b:q4")
    assert path.read_bytes() == (tmp_path / "again.tar").read_bytes()


def test_archive_is_an_oci_image_layout(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "m.tar", "ns/a", "b:q4")
    with tarfile.open(tmp_path / "m.tar") as tar:
        names = tar.getnames()
        index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
        layout = json.load(tar.extractfile("oci-layout"))  # type: ignore[arg-type]
    assert layout == {"imageLayoutVersion": "1.0.0"}
    assert len(names) == len(set(names)), "a shared blob is stored once"
    annotated = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert annotated == ["registry.ollama.ai/ns/a:latest", "registry.ollama.ai/library/b:q4"]
    assert all(f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}" in names for entry in index["manifests"])


def test_import_under_another_name(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "one.tar", "ns/a")
    assert import_archive(tmp_path / "one.tar", tmp_path / "x", "new:tag").names() == (ModelName.parse("new:tag"),)
    export(store, tmp_path / "two.tar", "ns/a", "b:q4")
    with pytest.raises(BadRequest, match="contains 2 models"):
        import_archive(tmp_path / "two.tar", tmp_path / "x", "new")


def test_existing_blobs_are_not_copied(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "m.tar", "ns/a")
    lines: list[str] = []
    target = import_archive(tmp_path / "m.tar", tmp_path / "x", report=lambda line: lines.append(line.digest))
    assert lines
    lines.clear()
    import_archive(tmp_path / "m.tar", target.root, report=lambda line: lines.append(line.digest))
    assert not lines


def test_a_damaged_blob_is_not_exported(store: Store, tmp_path: Path) -> None:
    weights = store.resolve(ModelName.parse("ns/a")).weights
    assert weights is not None
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StoreError, match="missing or damaged"):
        export(store, tmp_path / "m.tar", "ns/a")
    weights.unlink()
    with pytest.raises(StoreError, match="missing or damaged"):
        export(store, tmp_path / "m.tar", "ns/a")
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".m.tar*"))


def test_export_and_import_can_be_cancelled(store: Store, tmp_path: Path) -> None:
    cancelled = threading.Event()
    with pytest.raises(Cancelled):
        export(store, tmp_path / "m.tar", "ns/a", report=lambda line: cancelled.set(), cancelled=cancelled)
    assert not list(tmp_path.glob("*m.tar*"))
    export(store, tmp_path / "m.tar", "ns/a")
    cancelled.set()
    with pytest.raises(Cancelled):
        import_archive(tmp_path / "m.tar", tmp_path / "x", cancelled=cancelled)
    assert snapshot(tmp_path / "x") == {}


# -- hostile archives --------------------------------------------------------------------------------------------------

Tamper = Callable[[tarfile.TarFile, Path], None]


def add(tar: tarfile.TarFile, name: str, data: bytes = b"x", **attributes: Any) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in attributes.items():
        setattr(entry, key, value)
    tar.addfile(entry, io.BytesIO(data))


def link(kind: bytes, target: str) -> Tamper:
    return lambda tar, _: add(tar, "blobs/sha256/" + "0" * 64, b"", type=kind, linkname=target)


def sparse(tar: tarfile.TarFile, folder: Path) -> None:
    """Add a sparse file of 10 GB that has no data in the archive (GNU format 1.0)."""
    headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0",
        "GNU.sparse.name": "blobs/sha256/" + "0" * 64, "GNU.sparse.realsize": str(10 << 30),
    }  # fmt: skip
    add(tar, "GNUSparseFile.0/x", b"1\n0\n0\n".ljust(512, b"\0"), pax_headers=headers)


UNSAFE: dict[str, tuple[Tamper, str]] = {
    "path traversal": (lambda tar, _: add(tar, "../../evil"), "unsafe entry"),
    "path traversal below a folder": (lambda tar, _: add(tar, "blobs/../../../evil"), "unsafe entry"),
    "a symbolic link": (link(tarfile.SYMTYPE, "/etc/passwd"), "unsafe entry"),
    "a symbolic link inside": (link(tarfile.SYMTYPE, "index.json"), "not a regular file"),
    "a hard link": (link(tarfile.LNKTYPE, "index.json"), "not a regular file"),
    "a device": (lambda tar, _: add(tar, "dev", b"", type=tarfile.BLKTYPE), "unsafe entry"),
    "a pipe": (lambda tar, _: add(tar, "pipe", b"", type=tarfile.FIFOTYPE), "unsafe entry|not a regular file"),
    "a sparse file": (sparse, "not a regular file|is truncated"),
    "an entry twice": (lambda tar, _: add(tar, "index.json", b"{}"), "'index.json' twice"),
}


@pytest.mark.parametrize(("tamper", "text"), UNSAFE.values(), ids=UNSAFE.keys())
def test_unsafe_entries_are_rejected(store: Store, tmp_path: Path, tamper: Tamper, text: str) -> None:
    export(store, tmp_path / "m.tar", "ns/a")
    with tarfile.open(tmp_path / "m.tar", "a", format=tarfile.PAX_FORMAT) as tar:
        tamper(tar, tmp_path)
    with pytest.raises(BadRequest, match=text):
        import_archive(tmp_path / "m.tar", tmp_path / "deep" / "x")
    assert snapshot(tmp_path / "deep") == {}
    assert not (tmp_path / "evil").exists()


def test_an_absolute_name_is_harmless(store: Store, tmp_path: Path) -> None:
    """tarfile's filter strips the slash; no file of that name is read or written."""
    export(store, tmp_path / "m.tar", "ns/a")
    with tarfile.open(tmp_path / "m.tar", "a") as tar:
        add(tar, str(tmp_path / "evil"))
    import_archive(tmp_path / "m.tar", tmp_path / "x")
    assert not (tmp_path / "evil").exists()
    check_sound(tmp_path / "x")


def test_the_number_of_entries_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 100)
    with tarfile.open(tmp_path / "m.tar", "w") as tar:
        for number in range(101):
            add(tar, f"file{number}", b"")
    with pytest.raises(BadRequest, match="more than 100 entries"):
        import_archive(tmp_path / "m.tar", tmp_path / "x")


def test_the_size_of_headers_is_limited(tmp_path: Path) -> None:
    """A pax header may be as long as its file, and tarfile would read it completely."""
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 40
    with (tmp_path / "m.tar").open("wb") as file:
        file.write(entry.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(BadRequest, match="not a valid tar archive: a header of the archive is too long"):
        import_archive(tmp_path / "m.tar", tmp_path / "x")


@pytest.mark.parametrize("data", [b"", b"no tar" * 200, b"\x1f\x8b" + bytes(600), bytes(10240)])
def test_files_that_are_not_archives(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.tar").write_bytes(data)
    with pytest.raises(BadRequest, match=r"not a valid tar archive|it has no index\.json"):
        import_archive(tmp_path / "m.tar", tmp_path / "x")


def test_truncated_archives(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "m.tar", "ns/a")
    data = (tmp_path / "m.tar").read_bytes()
    for length in range(0, len(data) - 10240, 509):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(OllamaError):
            import_archive(tmp_path / "cut.tar", tmp_path / "x")
        check_sound(tmp_path / "x")
        assert published(tmp_path / "x") == {}


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with tarfile.open(path) as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    change(files)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            add(tar, name, data)


def with_index(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        index = json.loads(files["index.json"])
        index["manifests"][0].update(changes)
        files["index.json"] = json.dumps(index).encode()

    return change


def first_blob(files: dict[str, bytes], least: int) -> str:
    return next(name for name, data in files.items() if name.startswith("blobs/") and len(data) >= least)


def flip(files: dict[str, bytes]) -> None:
    name = first_blob(files, 10_000)
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])


def broken_gguf(files: dict[str, bytes]) -> None:
    """Replace the weights by a file that is not GGUF, with consistent digests."""
    name, false = first_blob(files, 10_000), b"GGUF" + bytes(20_000)
    old, new = name.rpartition("/")[2], digest_of(false).hex
    size = len(files.pop(name))
    files[f"blobs/sha256/{new}"] = false
    manifest = next(name for name, data in files.items() if b'"layers"' in data)
    raw = files.pop(manifest).replace(old.encode(), new.encode())
    raw = raw.replace(f'"size":{size}'.encode(), f'"size":{len(false)}'.encode())
    files[f"blobs/sha256/{digest_of(raw).hex}"] = raw
    with_index(digest=str(digest_of(raw)))(files)


INCONSISTENT: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "other bytes": (flip, "digest mismatch"),
    "a blob is missing": (lambda files: str(files.pop(first_blob(files, 10_000))), "lacks blob"),
    "a blob is longer": (lambda files: files.update({first_blob(files, 10_000): bytes(20_000)}), "lacks blob"),
    "no index": (lambda files: str(files.pop("index.json")), "it has no index.json"),
    "index is a list": (lambda files: files.update({"index.json": b"[]"}), "is not valid"),
    "index is deep": (lambda files: files.update({"index.json": b"[" * 200_000}), "is not valid"),
    "index is huge": (lambda files: files.update({"index.json": b" " * (5 << 20)}), "is larger than"),
    "no models": (lambda files: files.update({"index.json": b'{"manifests": []}'}), "contains 0 models"),
    "an invalid name": (
        with_index(annotations={"org.opencontainers.image.ref.name": "../../x"}),
        "not a valid model name",
    ),
    "no name": (with_index(annotations={}), "not a valid model name"),
    "a path as digest": (with_index(digest="sha256:../../../etc/passwd"), "invalid digest"),
    "a missing manifest": (with_index(digest="sha256:" + "0" * 64), "lacks the manifest"),
    "weights that are not GGUF": (broken_gguf, "not a usable GGUF file"),
}


@pytest.mark.parametrize(("change", "text"), INCONSISTENT.values(), ids=INCONSISTENT.keys())
def test_inconsistent_content_is_rejected(
    store: Store, tmp_path: Path, change: Callable[[dict[str, bytes]], None], text: str
) -> None:
    export(store, tmp_path / "m.tar", "ns/a")
    rewrite(tmp_path / "m.tar", change)
    with pytest.raises(BadRequest, match=text):
        import_archive(tmp_path / "m.tar", tmp_path / "x")
    check_sound(tmp_path / "x")
    assert published(tmp_path / "x") == {}


def test_a_manifest_that_does_not_match_its_digest(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "m.tar", "ns/a")

    def change(files: dict[str, bytes]) -> None:
        name = next(name for name, data in files.items() if b'"layers"' in data)
        files[name] += b" "

    rewrite(tmp_path / "m.tar", change)
    with pytest.raises(CorruptModel, match="is damaged"):
        import_archive(tmp_path / "m.tar", tmp_path / "x")


def test_import_keeps_the_models_of_the_target(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "m.tar", "ns/a")
    other = Store(tmp_path / "x")
    tiny(other, "mine")
    import_archive(tmp_path / "m.tar", other.root)
    assert [name.short for name in other.names()] == ["ns/a:latest", "mine:latest"]
    check_sound(other.root)
