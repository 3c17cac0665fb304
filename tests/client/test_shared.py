"""Files that go straight into the store of a server on this machine, after a proof that it is the same one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.fake_servers import ScriptedServer, error, ok
from support.servers import standalone
from support.stores import check_sound, snapshot

from ollama_nb.client import files
from ollama_nb.client.client import Client
from ollama_nb.client.files import SharedStore, file_digest
from ollama_nb.errors import BadRequest, StoreError
from ollama_nb.store.blobs import BlobStore

CONTENT = b"GGUF" + bytes(3_000_000)


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    return SharedStore(BlobStore(tmp_path / "models" / "blobs"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    return path


def blob(folder: Path) -> Path:
    return folder / "models" / "blobs" / f"sha256-{hashlib.sha256(CONTENT).hexdigest()}"


def nothing(done: int, total: int) -> None:
    pass


def test_a_real_server_has_the_file_without_an_upload(tmp_path: Path, file: Path) -> None:
    with standalone(tmp_path / "home") as server:
        server.models.mkdir(parents=True, exist_ok=True)
        (server.models / "blobs").mkdir(exist_ok=True)
        client = Client(server.url)
        shared = SharedStore.find(client, server.models)
        assert shared is not None
        assert snapshot(server.models) == {}, "the proof is gone"
        assert SharedStore.find(client, tmp_path / "home") is None
        digest = file_digest(file)
        assert not client.has_blob(digest)
        shared.add(file, digest, nothing)
        assert client.has_blob(digest)
        check_sound(server.models)


def test_another_server_is_not_believed(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    client = Client(server.url)
    assert SharedStore.find(client, tmp_path) is None
    assert snapshot(tmp_path) == {}
    assert [seen.method for seen in server.seen] == ["HEAD"]


def test_a_server_elsewhere_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    assert SharedStore.find(Client("http://192.0.2.1:11434"), tmp_path) is None


def test_a_copy(store: SharedStore, file: Path, tmp_path: Path) -> None:
    store.add(file, file_digest(file), nothing)
    file.write_bytes(b"changed later")
    assert blob(tmp_path).read_bytes() == CONTENT
    check_sound(tmp_path / "models")


def test_a_link_takes_no_room(store: SharedStore, file: Path, tmp_path: Path) -> None:
    store.add(file, file_digest(file), nothing, link=True)
    assert blob(tmp_path).samefile(file)
    store.add(file, file_digest(file), nothing, link=True)
    assert len(list((tmp_path / "models" / "blobs").iterdir())) == 1


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_changes_meanwhile(store: SharedStore, file: Path, tmp_path: Path, link: bool) -> None:
    digest = file_digest(file)
    file.write_bytes(b"GGUF something else")
    with pytest.raises(StoreError, match=r"m\.gguf changed while it was read"):
        store.add(file, digest, nothing, link=link)
    assert snapshot(tmp_path / "models") == {}
    assert file.read_bytes() == b"GGUF something else"


def test_the_server_that_has_it_gets_nothing(server: ScriptedServer, store: SharedStore, file: Path) -> None:
    server.routes["HEAD /api/blobs/d"] = ok()
    files.send(Client(server.url), store, file, "d", nothing)
    server.routes["HEAD /api/blobs/e"] = error(404, "")
    with pytest.raises(BadRequest, match="invalid digest"):
        files.send(Client(server.url), store, file, "e", nothing)
