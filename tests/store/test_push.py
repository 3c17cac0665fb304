"""Pushing: existing blobs are skipped, interrupted uploads resume, the manifest comes last and unchanged."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from support.chaos_registry import ChaosRegistry, Fault, Handler, cut_after, status
from support.processes import until
from support.stores import tiny
from support.transfers import never_back, push, statuses

from ollama_nb.api.events import Progress
from ollama_nb.api.models import Model
from ollama_nb.api.names import ModelName
from ollama_nb.errors import AccessDenied, Cancelled, ModelNotFound, SourceError, StoreError
from ollama_nb.store.store import Store


def model(store: Store, registry: ChaosRegistry) -> Model:
    tiny(store, f"{registry.host}/a/m", template="{{ .Prompt }}", system="Sag es auf Deutsch: 你好")
    return store.resolve(ModelName.parse(f"{registry.host}/a/m"))


def is_complete(registry: ChaosRegistry, model: Model) -> bool:
    """Return whether the registry has all blobs, and received the manifest last."""
    layers = (*model.manifest.layers, model.manifest.config)
    assert registry.manifests["/v2/a/m/manifests/latest"] == model.manifest.raw
    assert registry.asked[-1].path == "/v2/a/m/manifests/latest"
    return registry.blobs.keys() == {str(layer.digest) for layer in layers}


def test_lines_and_requests(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    pushed = model(store, registry)
    lines = push(store, f"{registry.host}/a/m", tmp_path)
    assert is_complete(registry, pushed)
    layers = (*pushed.manifest.layers, pushed.manifest.config)
    uploads = [f"pushing {layer.digest.short}" for layer in layers]
    assert statuses(lines) == ["retrieving manifest", *uploads, "pushing manifest"]
    assert never_back(lines)
    patch = registry.of("PATCH", "uploads")[0]
    assert patch.headers["Content-Range"] == f"0-{layers[0].size - 1}"
    assert patch.headers["X-Redirect-Uploads"] == "1"
    data = store.blobs.path(layers[0].digest).read_bytes()
    whole = hashlib.md5(hashlib.md5(data).digest()).hexdigest()
    assert f"etag={whole}-1" in registry.of("PUT", "uploads")[0].path

    registry.asked.clear()
    push(store, f"{registry.host}/a/m", tmp_path)
    assert [one.method for one in registry.asked] == ["HEAD"] * len(layers) + ["PUT"]


@pytest.mark.parametrize(
    "faults",
    [
        [cut_after(1000), cut_after(500), cut_after(0)],
        [status(503), status(429, Retry_After="0")],
    ],
)
def test_interrupted_uploads_resume(
    registry: ChaosRegistry, store: Store, tmp_path: Path, faults: list[Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = model(store, registry)
    registry.faults.extend(faults)
    lines = push(store, f"{registry.host}/a/m", tmp_path)
    assert is_complete(registry, pushed)
    assert never_back(lines)
    assert len(registry.of("POST", "uploads")) == len(pushed.manifest.layers) + 1


def test_several_chunks(registry: ChaosRegistry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_nb.store.transfer.push.MIN_CHUNK", 100)
    monkeypatch.setattr("ollama_nb.store.transfer.push.MAX_CHUNK", 100)
    pushed = model(store, registry)
    registry.faults.extend([cut_after(1000)] * 2)  # the registry stores the first chunk, but its response is lost
    push(store, f"{registry.host}/a/m", tmp_path)
    assert is_complete(registry, pushed)
    data = store.blobs.path(pushed.manifest.layers[0].digest).read_bytes()
    sums = [hashlib.md5(data[at : at + 100]).digest() for at in range(0, len(data), 100)]
    etag = f"etag={hashlib.md5(b''.join(sums)).hexdigest()}-{len(sums)}"
    assert len(sums) > 1
    assert any(etag in one.path for one in registry.of("PUT", "uploads"))


def test_a_lost_upload_session(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    pushed = model(store, registry)

    def forget(handler: Handler) -> bool:
        handler.registry.uploads.clear()
        handler.cut()
        return True

    registry.faults.append(forget)
    push(store, f"{registry.host}/a/m", tmp_path)
    assert is_complete(registry, pushed)
    assert len(registry.of("POST", "uploads")) == len(pushed.manifest.layers) + 2


def test_an_incomplete_model_is_not_pushed(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    model(store, registry)
    registry.always = status(500)
    with pytest.raises(SourceError, match="500: status 500"):
        push(store, f"{registry.host}/a/m", tmp_path)
    assert registry.manifests == {}
    registry.always = None
    store.blobs.remove(store.resolve(ModelName.parse(f"{registry.host}/a/m")).manifest.layers[0].digest)
    lines: list[Progress] = []
    with pytest.raises(StoreError, match="missing or damaged"):
        push(store, f"{registry.host}/a/m", tmp_path, lines=lines)
    assert [line.status for line in lines] == ["retrieving manifest", "couldn't retrieve manifest"]


def test_layers_of_another_repository_are_mounted(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    base = model(store, registry)
    push(store, f"{registry.host}/a/m", tmp_path)
    tiny(store, f"{registry.host}/a/own", system="own")
    raw = base.manifest.raw.replace(b'"size":', f'"from":"{registry.host}/a/m:latest","size":'.encode(), 2)
    store.put_manifest(ModelName.parse(f"{registry.host}/b/m"), raw)
    registry.asked.clear()

    def absent(handler: Handler) -> bool:
        if handler.command == "HEAD":
            handler.answer(404, b"")
        return handler.command == "HEAD"

    registry.gate = absent
    push(store, f"{registry.host}/b/m", tmp_path)
    mounts = [one.path for one in registry.of("POST", "mount=")]
    assert mounts and all(path.endswith("&from=a/m") for path in mounts)


def test_upload_to_separate_storage(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    """After a 307 the chunk goes to the storage without credentials, the next request to the registry."""
    pushed = model(store, registry)

    def to_storage(handler: Handler) -> bool:
        place, handler.path = handler.path.partition("?")[0], handler.path
        handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {"Location": f"/storage{place}", "Docker-Upload-Location": f"{place}?next"}
        handler.answer(307, b"", headers)
        return True

    def storage(handler: Handler) -> bool:
        if not handler.path.startswith("/storage"):
            return False
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.registry.uploads[handler.path.rpartition("/")[2]] += body
        handler.answer(200, b"")
        return True

    registry.gate, registry.always = storage, to_storage
    push(store, f"{registry.host}/a/m", tmp_path)
    assert is_complete(registry, pushed)
    assert len(registry.of("PUT", "/storage")) == len(pushed.manifest.layers) + 1


def test_cancelling(registry: ChaosRegistry, store: Store, tmp_path: Path) -> None:
    model(store, registry)
    arrived = threading.Event()

    def wait(handler: Handler) -> bool:
        arrived.set()
        return handler.registry.released.wait(60)

    registry.always = wait
    cancelled = threading.Event()

    def work() -> None:
        with pytest.raises(Cancelled):
            push(store, f"{registry.host}/a/m", tmp_path, cancelled=cancelled)

    thread = threading.Thread(target=work)
    thread.start()
    until(arrived.is_set)
    cancelled.set()
    thread.join(60)
    assert not thread.is_alive()
    assert registry.manifests == {}


def test_names(store: Store, tmp_path: Path) -> None:
    lines: list[Progress] = []
    with pytest.raises(ModelNotFound, match=r"^model '127\.0\.0\.1:1/a/none:latest' not found$"):
        push(store, "127.0.0.1:1/a/none", tmp_path, lines=lines)
    assert [line.status for line in lines] == ["retrieving manifest", "couldn't retrieve manifest"]
    with pytest.raises(SourceError, match=r"^insecure protocol http$"):
        push(store, "http://127.0.0.1:1/a/none", tmp_path, insecure=False)


@pytest.mark.parametrize("code", [401, 403])
def test_denied_push_has_its_own_class(registry: ChaosRegistry, store: Store, tmp_path: Path, code: int) -> None:
    model(store, registry)

    def refuse(handler: Handler) -> bool:
        handler.answer(code, b'{"errors":[{"code":"UNAUTHORIZED"}]}')
        return True

    registry.always = refuse
    with pytest.raises(AccessDenied) as caught:
        push(store, f"{registry.host}/a/m", tmp_path)
    assert caught.value.code == "access_denied"
