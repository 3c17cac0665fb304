"""The key pair and the registry credentials of a user."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from ollama_nb.errors import StoreError
from ollama_nb.store.registry.credentials import Credential, Credentials, RegistryKey, credential_files
from ollama_nb.store.registry.urls import Origin

HUB = Origin.of("https://registry.example:5000")


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_key_is_created_once(tmp_path: Path, umask: int) -> None:
    path = tmp_path / ".ollama" / "id_ed25519"
    before = os.umask(umask)
    try:
        key = RegistryKey.ensure(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = path.with_name("id_ed25519.pub").read_text()
    assert public == f"ssh-ed25519 {key.blob}\n"
    assert RegistryKey.ensure(path).blob == key.blob == RegistryKey.load(path).blob
    assert sorted(file.name for file in path.parent.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


def test_concurrent_processes_create_one_key(tmp_path: Path) -> None:
    blobs: list[str] = []
    threads = [threading.Thread(target=lambda: blobs.append(RegistryKey.ensure(tmp_path / "k").blob)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(blobs) == 8
    assert len(set(blobs)) == 1


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_openssh_accepts_the_key(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    key = RegistryKey.ensure(path)
    shown = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=False)
    assert shown.stdout.split()[:2] == ["ssh-ed25519", key.blob]


def test_signatures_are_valid(tmp_path: Path) -> None:
    blob, _, signature = RegistryKey.ensure(tmp_path / "k").authorization("GET,/x").partition(":")
    public = load_ssh_public_key(f"ssh-ed25519 {blob}".encode())
    assert isinstance(public, Ed25519PublicKey)
    public.verify(base64.b64decode(signature), b"GET,/x")  # raises if it is not valid


def test_unsafe_and_invalid_keys(tmp_path: Path) -> None:
    path = tmp_path / "k"
    RegistryKey.ensure(path)
    path.chmod(0o640)
    with pytest.raises(StoreError, match=r"others can read the private key .*: run `chmod 600"):
        RegistryKey.load(path)
    path.write_bytes(b"nonsense")
    path.chmod(0o600)
    with pytest.raises(StoreError, match="is not a private key in OpenSSH format"):
        RegistryKey.ensure(path)
    with pytest.raises(FileNotFoundError):
        RegistryKey.load(tmp_path / "none")


def test_credentials_by_registry(tmp_path: Path) -> None:
    ours, dockers = credential_files(tmp_path / "nb", {"HOME": str(tmp_path)})
    dockers.parent.mkdir()
    ours.parent.mkdir()
    auth = base64.b64encode(b"mia:ge:heim").decode()
    entries = {
        "registry.example:5000": {"auth": auth},
        "https://index.docker.io/v1/": {"username": "a", "password": "b"},
        "tok": {"registrytoken": "t"},
        "broken": {"auth": "%"},
    }
    dockers.write_text(json.dumps({"auths": entries, "credsStore": "x"}))
    known = Credentials.load((ours, dockers), {"HF_TOKEN": "hf"})
    assert known.of(HUB) == Credential("mia", "ge:heim")
    assert known.of(HUB).header == f"Basic {auth}"  # type: ignore[union-attr]
    assert known.of(Origin.of("https://registry.example")) is None
    assert known.of(Origin.of("https://index.docker.io")) == Credential("a", "b")
    assert known.of(Origin.of("https://tok")) == Credential(token="t")
    assert known.of(Origin.of("https://broken")) is None
    assert (
        known.of(Origin.of("https://hf.co")) == known.of(Origin.of("https://huggingface.co")) == Credential(token="hf")
    )
    ours.write_text(json.dumps({"auths": {"registry.example:5000": {"username": "o", "password": "p"}},
                                "hosts": {"registry.example:5000": {"may_use": ["cdn.example"]}}}))  # fmt: skip
    known = Credentials.load((ours, dockers), {})
    assert known.of(HUB) == Credential("o", "p")
    assert [str(origin) for origin in known.hosts_of(HUB)] == ["https://cdn.example"]
    assert "p" not in repr(known.of(HUB)).removeprefix("Credential")


@pytest.mark.parametrize("may_use", ["5", '"cdn.example"', "null"])
def test_may_use_must_be_a_list(tmp_path: Path, may_use: str) -> None:
    (tmp_path / "c").write_text(f'{{"hosts": {{"{HUB.address}": {{"may_use": {may_use}}}}}}}')
    assert list(Credentials.load((tmp_path / "c",), {}).hosts_of(HUB)) == []


@pytest.mark.parametrize("text", ["[]", "{}", '{"auths": []}', '{"auths": {"x": 1}}', '{"auths": null}'])
def test_files_without_credentials(tmp_path: Path, text: str) -> None:
    (tmp_path / "c").write_text(text)
    assert Credentials.load((tmp_path / "none", tmp_path / "c"), {}) == Credentials()


def test_an_invalid_file(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("{")
    with pytest.raises(StoreError, match="cannot read the credentials in"):
        Credentials.load((tmp_path / "c",), {})
