"""Credentials for registries: Ollama's ed25519 key pair, and user names, passwords and tokens per registry.

They are read from Docker's ``config.json`` (written by ``docker login``) and from a file of this program in the same
format. Credential helpers (``credsStore``) are not run.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ollama_nb import disk
from ollama_nb.errors import StoreError
from ollama_nb.store.registry.urls import Origin

MAX_FILE = 1 << 20  # bytes of a key or a credentials file
HUGGING_FACE = "huggingface.co"


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name with a password, or a token."""

    username: str = ""
    password: str = ""
    token: str = ""

    @property
    def header(self) -> str:
        """The value of ``Authorization``."""
        if self.token:
            return f"Bearer {self.token}"
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    def __repr__(self) -> str:
        return "Credential(…)"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials by registry (``host`` or ``host:port``), and the hosts that each registry may redirect to."""

    by_registry: Mapping[str, Credential] = field(default_factory=dict)
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, files: tuple[Path, ...], env: Mapping[str, str]) -> Credentials:
        """Read ``files``; the first entry for a registry wins. ``HF_TOKEN`` applies to Hugging Face only."""
        known: dict[str, Credential] = {}
        hosts: dict[str, tuple[str, ...]] = {}
        for path in files:
            body = _read_file(path)
            for name, entry in _entries(body, "auths"):
                if credential := _parse_credential(entry):
                    known.setdefault(_registry_host(name), credential)
            for name, entry in _entries(body, "hosts"):
                may_use = entry.get("may_use")
                hosts.setdefault(_registry_host(name), tuple(map(str, may_use)) if isinstance(may_use, list) else ())
        if token := env.get("HF_TOKEN", "").strip():
            known.setdefault(HUGGING_FACE, Credential(token=token))
        return cls(known, hosts)

    def of(self, registry: Origin) -> Credential | None:
        """Return the credential for a registry, or None."""
        return self.by_registry.get(registry.canonical.address)

    def hosts_of(self, registry: Origin) -> Iterator[Origin]:
        """Yield the other hosts that the user trusts for this registry."""
        for address in self.hosts.get(registry.canonical.address, ()):
            yield Origin.of(f"{registry.scheme}://{address}")


def credential_files(home: Path, env: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the paths of our file and of Docker's. ``home`` is the state folder of this program."""
    docker = Path(env.get("DOCKER_CONFIG") or Path(env.get("HOME") or Path.home()) / ".docker")
    return (home / "registries.json", docker / "config.json")


@dataclass(frozen=True, slots=True)
class RegistryKey:
    """An ed25519 key pair in OpenSSH format, as Ollama stores it."""

    private: Ed25519PrivateKey

    @classmethod
    def ensure(cls, path: Path) -> RegistryKey:
        """Load the key pair, or create it: the private key with mode 0600, the public key in ``.pub``."""
        try:
            return cls.load(path)
        except FileNotFoundError:
            pass
        with disk.store_errors("write", path):
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            key = cls(Ed25519PrivateKey.generate())
            with contextlib.suppress(FileExistsError):  # another process has just created one
                disk.write_new(path, key._openssh(), mode=0o600)
                disk.write(path.with_name(f"{path.name}.pub"), f"ssh-ed25519 {key.blob}\n".encode())
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> RegistryKey:
        """Load the key. Raises FileNotFoundError, or StoreError if others can read the file or it is not such a key."""
        try:
            with path.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    display = disk.display_path(path)
                    raise StoreError(f"others can read the private key {display}: run `chmod 600 {display}` first")
                raw = file.read(MAX_FILE)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"cannot read the key {disk.display_path(path)}: {error.strerror}") from error
        try:
            key = serialization.load_ssh_private_key(raw, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StoreError(f"{disk.display_path(path)} is not a private key in OpenSSH format: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise StoreError(f"{disk.display_path(path)} is not an ed25519 key, which Ollama registries require")
        return cls(key)

    @property
    def blob(self) -> str:
        """The public key in base64, the second field of its ``.pub`` line."""
        line = self.private.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        return line.split()[1].decode()

    def authorization(self, text: str) -> str:
        """Sign ``text`` and format public key and signature as Ollama registries expect them."""
        return f"{self.blob}:{base64.b64encode(self.private.sign(text.encode())).decode()}"

    def _openssh(self) -> bytes:
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            body = json.loads(file.read(MAX_FILE))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read the credentials in {disk.display_path(path)}: {error}") from error
    return body if isinstance(body, dict) else {}


def _entries(body: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = body.get(key)
    for name, entry in (entries if isinstance(entries, dict) else {}).items():
        if isinstance(entry, dict):
            yield name, entry


def _parse_credential(entry: Mapping[str, Any]) -> Credential | None:
    texts = {key: value for key, value in entry.items() if isinstance(value, str)}
    if texts.get("registrytoken"):
        return Credential(token=texts["registrytoken"])
    if texts.get("username"):
        return Credential(texts["username"], texts.get("password", ""))
    try:
        username, colon, password = base64.b64decode(texts.get("auth", "")).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Credential(username, password) if colon else None


def _registry_host(name: str) -> str:
    """Extract the host of a key in ``auths``: ``host``, or ``https://host/v1/`` as Docker writes it for its hub."""
    return name.partition("://")[2].partition("/")[0].lower() if "://" in name else name.partition("/")[0].lower()
