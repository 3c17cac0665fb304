"""Build the container file without a daemon or a registry, on a Debian made in a chroot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.servers import free_port

ROOT = Path(__file__).parent.parent.parent
BASE = "docker.io/library/python:3.12-slim"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
PASSED_ON = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.geteuid() != 0 or not (shutil.which("buildah") and shutil.which("debootstrap")),
        reason="needs root, buildah and debootstrap",
    ),
]

# A chroot shares the machine's ports.
SERVE = """
export OLLAMA_HOST=127.0.0.1:$PORT
ollama serve 2>/tmp/log & server=$!
until curl -sf http://$OLLAMA_HOST/; do kill -0 $server || { cat /tmp/log; exit 1; }; sleep 1; done
ollama run sprout --think=false 你好  # writes into the volume
kill $server; wait $server || true
"""
JUPYTER = """
jupyter lab --ip=127.0.0.1 --port=$PORT --no-browser --ServerApp.token=t 2>/tmp/log & server=$!
until curl -sf -H 'Authorization: token t' http://127.0.0.1:$PORT/ollama/api/version; do
  kill -0 $server || { cat /tmp/log; exit 1; }; sleep 1
done
kill $server; wait $server || true
"""

Buildah = Callable[..., str]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Buildah:
    """``buildah`` with its own store, which contains the image ``ours``."""
    folder = tmp_path_factory.mktemp("image")
    store = ["--root", folder / "store", "--runroot", folder / "run", "--storage-driver", "vfs"]

    def run(*arguments: str | Path) -> str:
        command = ["buildah", *store, *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "BUILDAH_ISOLATION": "chroot"}, capture_output=True)
        assert done.returncode == 0, (done.stdout + done.stderr).decode("utf-8", "replace")[-4000:]
        return done.stdout.decode("utf-8").strip()

    base = folder / "base"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", base], check=True, capture_output=True
    )
    (base / "usr/bin/python").symlink_to("python3")
    if Path(CERTIFICATES).exists():  # a local proxy may have its own
        shutil.copyfile(CERTIFICATES, base / CERTIFICATES[1:])
    container = run("from", "scratch")
    run("add", "-q", container, base, "/")
    run("commit", "-q", container, BASE)
    passed = [f"--env={name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
    run("build", "--pull=never", "--layers=false", *passed, f"--env=PIP_CERT={CERTIFICATES}", "-t", "ours",
        "-f", "binder/Containerfile", ".")  # fmt: skip
    return run


def within(buildah: Buildah, script: str) -> str:
    container = buildah("from", "ours")
    return buildah("run", f"--env=PORT={free_port()}", container, "--", "sh", "-euc", script)


def test_it_runs_without_privileges_and_keeps_models_in_a_volume(buildah: Buildah) -> None:
    config = json.loads(buildah("inspect", "--type=image", "ours"))["Docker"]["config"]
    assert config["User"] == "user" and list(config["Volumes"]) == ["/home/user/.ollama"]
    assert config["Cmd"][:2] == ["jupyter", "lab"]
    assert within(buildah, "id -u; ls").startswith("1000\n01_start.ipynb")


def test_it_serves(buildah: Buildah) -> None:
    told = within(buildah, SERVE)
    assert "Ollama is running" in told and "你好" in told


def test_it_is_a_notebook_server(buildah: Buildah) -> None:
    assert "ollama_nb" in json.loads(within(buildah, JUPYTER))
