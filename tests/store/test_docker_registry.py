"""Pushing to and pulling from Docker's registry: the model is the same byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.docker_registry import NAME, PASSWORD, Registry, certificate, docker_registry, needs_registry
from support.fake_servers import proxy_to
from support.stores import check_sound, published, snapshot, tiny
from support.transfers import never_back, pull, push, statuses

from ollama_nb.api.names import ModelName
from ollama_nb.errors import SourceError
from ollama_nb.store.registry.credentials import Credential, Credentials
from ollama_nb.store.store import Store

pytestmark = needs_registry


def push_and_pull(registry: Registry, store: Store, folder: Path, name: str, **fields: object) -> None:
    full = f"{registry.host}/{name}"
    tiny(store, full, template="{{ .Prompt }}", system="说中文", licenses=("MIT",))
    before = published(store.root)
    blobs = {path for path in snapshot(store.root) if path.startswith("blobs/")}
    pushed = push(store, full, folder, **fields)
    assert never_back(pushed)
    assert len(registry.blob_files()) == len(blobs) + 1
    store.delete(ModelName.parse(full))
    assert snapshot(store.root) == {}
    pulled = pull(store, full, folder, **fields)
    assert never_back(pulled)
    assert statuses(pulled)[-2:] == ["verifying sha256 digest", "writing manifest"]
    assert published(store.root) == before
    assert set(snapshot(store.root)) == blobs | before.keys()
    check_sound(store.root)


def test_over_http(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several parts and chunks."""
    monkeypatch.setattr("ollama_nb.store.transfer.partial.MIN_PART", 100)
    monkeypatch.setattr("ollama_nb.store.transfer.push.MIN_CHUNK", 100)
    monkeypatch.setattr("ollama_nb.store.transfer.push.MAX_CHUNK", 100)
    with docker_registry(tmp_path / "registry") as registry:
        push_and_pull(registry, store, tmp_path, "team/m:v1.0")
        assert registry.log.read_text("utf-8").count('"PATCH /v2/team/m/blobs/uploads/') > 5


def test_mounting(store: Store, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as registry:
        push_and_pull(registry, store, tmp_path, "a/base")
        base = f"{registry.host}/a/base:latest"
        raw = store.resolve(ModelName.parse(base)).manifest.raw
        raw = raw.replace(b'"size":', f'"from":"{base}","size":'.encode())
        store.put_manifest(ModelName.parse(f"{registry.host}/b/child"), raw)
        push(store, f"{registry.host}/b/child", tmp_path)
        log = registry.log.read_text("utf-8")
        assert "PATCH /v2/a/base/blobs/uploads/" in log
        assert "PATCH /v2/b/child/blobs/uploads/" not in log
        assert "mount=sha256" in log
        store.delete(ModelName.parse(f"{registry.host}/b/child"))
        pull(store, f"{registry.host}/b/child", tmp_path)


def test_password_and_tls(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path / "tls")
    with docker_registry(tmp_path / "registry", tls=tls, password=True) as registry:
        tiny(store, f"{registry.host}/a/m")
        with pytest.raises(SourceError, match="has a certificate that is not trusted: self-signed certificate"):
            push(store, f"{registry.host}/a/m", tmp_path, insecure=False)
        monkeypatch.setenv("SSL_CERT_FILE", str(tls / "cert.pem"))
        with pytest.raises(SourceError, match=r"unauthorized: access denied: .* asks for a user name and a password"):
            push(store, f"{registry.host}/a/m", tmp_path, insecure=False)
        wrong = Credentials({registry.host: Credential(NAME, "falsch")})
        with pytest.raises(SourceError, match="unauthorized: access denied"):
            push(store, f"{registry.host}/a/m", tmp_path, insecure=False, credentials=wrong)
        with pytest.raises(SourceError, match="unauthorized: access denied"):
            pull(store, f"{registry.host}/a/m", tmp_path, insecure=False)
        assert registry.blob_files() == []
        store.delete(ModelName.parse(f"{registry.host}/a/m"))
        known = Credentials({registry.host: Credential(NAME, PASSWORD)})
        push_and_pull(registry, store, tmp_path, "a/m", insecure=False, credentials=known)


def test_the_certificate_of_another_host(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path / "tls", names="DNS:registry.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(tls / "cert.pem"))
    refused = pytest.raises(SourceError, match=r"IP address mismatch.* \(use a name that the certificate has\)")
    with docker_registry(tmp_path / "registry", tls=tls) as registry, refused:
        pull(store, f"{registry.host}/a/m", tmp_path, insecure=False)


def test_through_a_proxy(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy opens a tunnel and sees only the host name."""
    tls = certificate(tmp_path / "tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(tls / "cert.pem"))
    with docker_registry(tmp_path / "registry", tls=tls) as registry, proxy_to(int(registry.host[10:])) as proxy:
        monkeypatch.setenv("https_proxy", f"http://mia:geheim@127.0.0.1:{proxy.port}")
        push_and_pull(replace(registry, host="registry.example:4443"), store, tmp_path, "a/m", insecure=False)
    assert {asked.partition("\r\n")[0] for asked in proxy.asked} == {"CONNECT registry.example:4443 HTTP/1.1"}
    assert all("Proxy-Authorization: Basic bWlhOmdlaGVpbQ==" in asked for asked in proxy.asked)


def test_through_a_plain_http_proxy(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with docker_registry(tmp_path / "registry") as registry, proxy_to(int(registry.host[10:])) as proxy:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
        push_and_pull(replace(registry, host="registry.example"), store, tmp_path, "a/m")
        assert proxy.asked[0].startswith("HEAD http://registry.example/v2/a/m/blobs/sha256:")
        monkeypatch.setenv("no_proxy", "registry.example")
        with pytest.raises(SourceError, match=r"cannot reach registry\.example"):
            pull(store, "registry.example/a/m", tmp_path)


def test_missing_models(store: Store, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as registry:
        with pytest.raises(SourceError, match=r"^pull model manifest: file does not exist$"):
            pull(store, f"{registry.host}/a/none", tmp_path)
        with pytest.raises(SourceError, match=r"cannot establish TLS with .*use `--insecure`"):
            pull(store, f"{registry.host}/a/none", tmp_path, insecure=False)
