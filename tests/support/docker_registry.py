"""Debian's ``docker-registry``, the reference implementation of the registry API, in its own process."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.processes import until
from support.servers import end, free_port

PROGRAM = "docker-registry"
NAME, PASSWORD = "mia", "geheim"

needs_registry = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} (a Debian package) is missing")


@dataclass(frozen=True)
class Registry:
    """``host`` is in the form used in model names."""

    host: str
    folder: Path
    log: Path

    def blob_files(self) -> list[Path]:
        return sorted(self.folder.glob("data/docker/registry/v2/blobs/sha256/*/*/data"))


@contextlib.contextmanager
def docker_registry(folder: Path, *, tls: Path | None = None, password: bool = False) -> Iterator[Registry]:
    """Start a registry with its blobs below ``folder``; ``tls`` contains ``cert.pem`` and ``key.pem``."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lines = [
        "version: 0.1",
        "log: {level: info, accesslog: {disabled: false}}",
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}}}",
        f"http: {{addr: '127.0.0.1:{port}', secret: same" + (_tls(tls) if tls else "") + "}",
    ]
    if password:
        users = subprocess.run(["htpasswd", "-nbB", NAME, PASSWORD], capture_output=True, check=True).stdout
        (folder / "htpasswd").write_bytes(users)
        lines.append(f"auth: {{htpasswd: {{realm: models, path: {folder / 'htpasswd'}}}}}")
    (folder / "config.yml").write_text("\n".join(lines) + "\n", "utf-8")
    log = folder / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen([PROGRAM, "serve", str(folder / "config.yml")], stdout=output, stderr=output)
    try:
        until(lambda: _listens(port, process, log))
        yield Registry(f"127.0.0.1:{port}", folder, log)
    finally:
        end(process)


def _tls(folder: Path) -> str:
    return f", tls: {{certificate: {folder / 'cert.pem'}, key: {folder / 'key.pem'}}}"


def _listens(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text("utf-8", "replace")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def certificate(folder: Path, names: str = "IP:127.0.0.1,DNS:localhost,DNS:registry.example") -> Path:
    """Create a self-signed certificate, by default for this machine, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", f"subjectAltName={names}"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return folder
