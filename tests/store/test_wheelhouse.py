"""Models packed into one wheel or several, and pulled with the real pip, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zipfile
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from support.ggufs import gguf
from support.stores import check_sound, create, digest_of, snapshot
from support.wheels import make_wheel

from ollama_nb.api.events import Progress
from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, Cancelled, CorruptModel, NotFound, OllamaError, StoreError
from ollama_nb.store import pieces, wheelhouse
from ollama_nb.store.packages import PackageContent, PackageRef, fetch
from ollama_nb.store.pieces import JoinedFile, PackedFile, Piece, WheelDescription, joined_path
from ollama_nb.store.store import Store
from ollama_nb.store.wheelhouse import WheelContent

WEIGHTS = gguf(data=os.urandom(300_000))
ADAPTER = gguf(data=os.urandom(90_000))
SMALL = 200_000
"""Bytes; results in three parts: two of the weights, one of the adapter."""


def content(store: Store, **changes: Any) -> WheelContent:
    files = {"model.gguf": store.blobs.add(WEIGHTS), "adapter.gguf": store.blobs.add(ADAPTER)}
    parts = {
        "distribution": "My.Model",
        "version": "1.2",
        "model": "my-model:latest",
        "files": files,
        "modelfile": "FROM ./model.gguf\nADAPTER ./adapter.gguf\nSYSTEM 你好\n",
        "card": "# my-model\n\n模型",
        "licenses": ("MIT text", "second 许可"),
    }
    return WheelContent(**{**parts, **changes})


def pack(
    what: WheelContent, store: Store, folder: Path, part_size: int = wheelhouse.PART_SIZE, **more: Any
) -> list[Path]:
    more = {"report": lambda line: None, "cancelled": threading.Event(), **more}
    return wheelhouse.pack(what, store.blobs, folder, part_size=part_size, **more)


def pull(folder: Path, reference: str, report: Any = lambda line: None) -> tuple[Store, PackageContent]:
    store = Store(folder / "other")
    package = fetch(
        PackageRef.parse(reference), store, report=report, cancelled=threading.Event(), temp=folder / "temp"
    )
    return store, package


@pytest.mark.parametrize("part_size", [wheelhouse.PART_SIZE, SMALL])
def test_pack_and_pull(store: Store, index: Path, tmp_path: Path, part_size: int) -> None:
    packed = content(store)
    paths = pack(packed, store, index, part_size)
    assert len(paths) == (1 if part_size > SMALL else 1 + 3)
    assert sorted(index.iterdir()) == sorted(paths)
    assert all(path.stat().st_size <= part_size for path in paths)
    lines: list[Progress] = []
    other, package = pull(tmp_path, "pip://my-model", lines.append)
    assert package == PackageContent(packed.files, packed.modelfile, packed.licenses, "my-model")
    assert other.blobs.read(packed.files["model.gguf"], 1 << 20) == WEIGHTS
    assert other.blobs.read(packed.files["adapter.gguf"], 1 << 20) == ADAPTER
    assert list((tmp_path / "temp").iterdir()) == []
    done = [line.completed for line in lines if line.digest == str(packed.files["model.gguf"])]
    assert done == sorted(done) and done[-1] == len(WEIGHTS)


def test_output_is_reproducible(store: Store, tmp_path: Path) -> None:
    for part_size in (SMALL, wheelhouse.PART_SIZE):
        first = pack(content(store), store, tmp_path / f"a{part_size}", part_size)
        second = pack(content(store), store, tmp_path / f"b{part_size}", part_size)
        assert [path.name for path in first] == [path.name for path in second]
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_metadata(store: Store, tmp_path: Path) -> None:
    main, *parts = pack(content(store), store, tmp_path / "wheels", SMALL)
    assert main.name == "my_model-1.2-py3-none-any.whl"
    assert parts[0].name == "my_model_part001-1.2-py3-none-any.whl"
    with zipfile.ZipFile(main) as wheel:
        metadata = BytesParser().parsebytes(wheel.read("my_model-1.2.dist-info/METADATA"))
        licenses = [wheel.read(f"my_model-1.2.dist-info/licenses/{n}") for n in metadata.get_all("License-File", [])]
        described = json.loads(wheel.read("my_model/ollama-nb.json"))
    assert (metadata["Name"], metadata["Version"]) == ("My.Model", "1.2")
    assert metadata.get_all("Requires-Dist") == [f"My.Model-part{n:03d}==1.2" for n in range(1, len(parts) + 1)]
    assert metadata.get_payload(decode=True) == "# my-model\n\n模型\n".encode()
    assert [text.decode() for text in licenses] == ["MIT text", "second 许可"]
    assert [file["name"] for file in described["files"]] == ["model.gguf", "adapter.gguf"]
    assert described["files"][0]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()


def test_existing_files_are_not_downloaded(store: Store, index: Path, tmp_path: Path) -> None:
    packed = content(store)
    _, *parts = pack(packed, store, index, SMALL)
    other, _ = pull(tmp_path, "pip://my-model")
    for part in parts:
        part.unlink()
    assert pull(tmp_path, "pip://my-model")[1].files == packed.files
    other.blobs.remove(packed.files["adapter.gguf"])
    with pytest.raises(NotFound, match=r"no wheel for pip://My\.Model-part003==1\.2 in the package index"):
        pull(tmp_path, "pip://my-model")


def damaged_part(index: Path) -> type[OllamaError]:
    """A valid wheel whose part has other bytes of the right length."""
    with zipfile.ZipFile(part_of(index)) as wheel:
        (info,) = (info for info in wheel.infolist() if info.filename.endswith(".part"))
    make_wheel(index, {info.filename: bytes(info.file_size)}, name="my-model-part002", version="1.2")
    return CorruptModel


def short_part(index: Path) -> type[OllamaError]:
    make_wheel(index, {"p/model.gguf.part": b"short"}, name="my-model-part002", version="1.2")
    return CorruptModel


def two_files(index: Path) -> type[OllamaError]:
    make_wheel(index, {"p/a": b"1", "p/b": b"2"}, name="my-model-part002", version="1.2")
    return BadRequest


def no_part(index: Path) -> type[OllamaError]:
    part_of(index).unlink()
    return NotFound


def part_of(index: Path) -> Path:
    return index / "my_model_part002-1.2-py3-none-any.whl"


@pytest.mark.parametrize("tamper", [damaged_part, short_part, two_files, no_part])
def test_invalid_parts_leave_no_files(store: Store, index: Path, tmp_path: Path, tamper: Any) -> None:
    pack(content(store), store, index, SMALL)
    error = tamper(index)
    with pytest.raises(error, match="part002"):
        pull(tmp_path, "pip://my-model")
    assert snapshot(tmp_path / "other") == {}


def test_an_interrupted_pull_resumes_with_the_next_part(
    store: Store, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled after the first part: that part is kept, later bytes are downloaded again."""
    packed = content(store)
    _, first, second, _ = pack(packed, store, index, SMALL)
    weights = packed.files["model.gguf"]
    cancelled = threading.Event()

    def stop(line: Progress) -> None:
        if line.digest == str(weights) and line.completed > 0:
            cancelled.set()

    other = Store(tmp_path / "other")
    reference = PackageRef.parse("pip://my-model")
    monkeypatch.setattr("ollama_nb.store.transfer.pace.PROGRESS_INTERVAL", 0.0)
    with pytest.raises(Cancelled):
        fetch(reference, other, report=stop, cancelled=cancelled, temp=tmp_path / "temp")
    (left,) = other.blobs.root.iterdir()
    assert left.name == f"{weights.filename}-pieces" and left.stat().st_size >= SMALL - (16 << 10)
    with left.open("ab") as file:
        file.write(b"not what was sent")
    aside = first.rename(tmp_path / first.name)
    assert pull(tmp_path, "pip://my-model")[1].files == packed.files
    assert other.blobs.read(weights, 1 << 20) == WEIGHTS
    assert not left.exists() and second.exists()
    aside.rename(first)


def test_a_damaged_part_is_downloaded_again(store: Store, index: Path, tmp_path: Path) -> None:
    packed = content(store)
    pack(packed, store, index, SMALL)
    other = Store(tmp_path / "other")
    other.blobs.tree.make()
    path = joined_path(other.blobs, packed.files["model.gguf"])
    path.write_bytes(bytes(SMALL * 2))
    pull(tmp_path, "pip://my-model")
    assert other.blobs.read(packed.files["model.gguf"], 1 << 20) == WEIGHTS
    assert not path.exists()


def test_a_joined_file_has_one_holder(store: Store) -> None:
    file = PackedFile("model.gguf", 5, DIGEST, (Piece("m-part001", 5, DIGEST),))
    with JoinedFile(store.blobs, file, threading.Event()) as joined:
        joined.write(b"12345")
        with pytest.raises(StoreError, match="is being downloaded by another pull"):
            JoinedFile(store.blobs, file, threading.Event())
    with JoinedFile(store.blobs, file, threading.Event()) as joined:
        assert (joined.pieces, joined.size) == (0, 0), "invalid pieces are discarded"


def test_cancelling(store: Store, tmp_path: Path) -> None:
    cancelled = threading.Event()
    with pytest.raises(Cancelled):
        pack(content(store), store, tmp_path / "w", report=lambda line: cancelled.set(), cancelled=cancelled)
    assert list((tmp_path / "w").iterdir()) == []


def test_a_damaged_blob_is_not_packed(store: Store, tmp_path: Path) -> None:
    packed = content(store)
    store.blobs.path(packed.files["adapter.gguf"]).write_bytes(bytes(len(ADAPTER)))
    for part_size in (SMALL, wheelhouse.PART_SIZE):
        with pytest.raises(StoreError, match="is damaged: `ollama-nb fsck --repair`"):
            pack(packed, store, tmp_path / "w", part_size)
    assert not (tmp_path / "w" / "my_model-1.2-py3-none-any.whl").exists()
    store.blobs.remove(packed.files["adapter.gguf"])
    with pytest.raises(StoreError, match="is missing"):
        pack(packed, store, tmp_path / "w")


@pytest.mark.parametrize(
    ("changes", "part_size"),
    [({"distribution": "../x"}, 1 << 20), ({"distribution": "-x"}, 1 << 20), ({"version": "1/2"}, 1 << 20), ({}, 1000)],
)
def test_invalid_names_versions_and_sizes(
    store: Store, tmp_path: Path, changes: dict[str, str], part_size: int
) -> None:
    with pytest.raises(BadRequest):
        pack(content(store, **changes), store, tmp_path / "w", part_size)
    assert not (tmp_path / "w").exists()


def test_distribution_names() -> None:
    assert wheelhouse.distribution_name("Llama3.2-1b-instruct_Q4") == "llama3.2-1b-instruct-q4"
    with pytest.raises(BadRequest, match="choose one with --name"):
        wheelhouse.distribution_name("___")


DIGEST = Digest("a" * 64)
WHOLE = WheelDescription("m:latest", "1.0", (PackedFile("model.gguf", 5, DIGEST, (Piece("m-part001", 5, DIGEST),)),))


def test_descriptions_round_trip() -> None:
    assert pieces.parse_description(pieces.encode_description(WHOLE), "M") == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("files"),
        lambda body: body.update(format=2),
        lambda body: body.update(files=[]),
        lambda body: body["files"].append(body["files"][0]),
        lambda body: body["files"][0].update(name="../x"),
        lambda body: body["files"][0].update(name=["x"]),
        lambda body: body["files"][0].update(size=6),
        lambda body: body["files"][0].update(size=True),
        lambda body: body["files"][0].update(size=-5),
        lambda body: body["files"][0].update(sha256="../../etc"),
        lambda body: body["files"][0].update(parts=7),
        lambda body: body["files"][0]["parts"][0].update(distribution="other"),
        lambda body: body["files"][0]["parts"][0].update(distribution="m-part001 --index-url=x"),
        lambda body: body["files"][0]["parts"][0].update(distribution=1),
    ],
)
def test_inconsistent_descriptions(change: Any) -> None:
    body = json.loads(pieces.encode_description(WHOLE))
    change(body)
    with pytest.raises(BadRequest):
        pieces.parse_description(json.dumps(body).encode(), "m")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{" * 100_000, b'{"format": 1, "files": "x"}', b"\xff"])
def test_invalid_descriptions(raw: bytes) -> None:
    with pytest.raises(CorruptModel):
        pieces.parse_description(raw, "m")


def test_packing_does_not_change_the_store(store: Store, index: Path, tmp_path: Path) -> None:
    create(store, "m", files={"m.gguf": WEIGHTS}, system="s")
    pack(content(store), store, index)
    check_sound(store.root)
    assert digest_of(WEIGHTS) in set(store.blobs.digests())
