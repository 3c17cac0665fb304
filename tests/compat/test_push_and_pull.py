"""push, rm, pull and run sprout through a real registry: with the program, over HTTP, with the official client."""

from __future__ import annotations

import contextlib
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from support.docker_registry import NAME, PASSWORD, Registry, certificate, docker_registry, needs_registry
from support.servers import RunningServer, clean_env, free_port, started, until_answers

pytestmark = [pytest.mark.model, needs_registry]

PULLED = ["pulling manifest", "pulling 5cea76684d36", "verifying sha256 digest", "writing manifest", "success"]
PUSHED = ["retrieving manifest", "pushing 5cea76684d36", "pushing manifest", "success"]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serve(tmp_path_factory.mktemp("home")) as found:
        yield found


@contextlib.contextmanager
def serve(home: Path, **env: str) -> Iterator[RunningServer]:
    """Run `ollama serve` as a user starts it."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-P", "-m", "ollama_nb.cli.main", "serve", "--host", address]
    with started(command, home, clean_env(home, **env)) as (process, log):
        server = RunningServer(f"http://{address}", process, home, log)
        until_answers(server, f"{server.url}/")
        yield server


def program(server: RunningServer, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "ollama_nb.cli.main", *args]
    env = clean_env(server.home, OLLAMA_HOST=server.url)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False, cwd=server.home)


def succeed(server: RunningServer, *args: str) -> subprocess.CompletedProcess[str]:
    result = program(server, *args)
    assert result.returncode == 0, result.stderr
    return result


def contains(lines: list[str], wanted: list[str]) -> bool:
    """Whether ``lines`` contains lines that start with each of ``wanted``, in that order."""
    rest = iter(lines)
    return all(any(line.startswith(one) for line in rest) for one in wanted)


def test_the_program(served: RunningServer, docker: Registry) -> None:
    name = f"{docker.host}/mia/sprout:by-hand"
    succeed(served, "pull", "sprout")
    succeed(served, "cp", "sprout", name)
    pushed = succeed(served, "push", name, "--insecure")
    assert pushed.stdout == f"\nYou can find your model at:\n\n\t{name}\n"
    assert contains(pushed.stderr.splitlines(), PUSHED[:-1])
    listed = succeed(served, "list", name).stdout.splitlines()[1]
    succeed(served, "rm", name, "sprout")
    assert succeed(served, "list", name).stdout.splitlines()[1:] == []
    pulled = succeed(served, "pull", name, "--insecure", "--streams", "2", "--max-rate", "100MB")
    assert contains(pulled.stderr.splitlines(), PULLED)
    assert succeed(served, "list", name).stdout.splitlines()[1].split()[:4] == listed.split()[:4]
    assert succeed(served, "run", name, "Hello").stdout.strip()
    refused = program(served, "push", f"http://{name}")
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (1, "Error: insecure protocol http")
    missing = program(served, "pull", f"{docker.host}/mia/none", "--insecure")
    assert missing.stderr.splitlines()[-1] == "Error: pull model manifest: file does not exist"


def test_over_http(served: RunningServer, docker: Registry) -> None:
    name = f"{docker.host}/mia/sprout:rest"
    with httpx.Client(base_url=served.url, timeout=120, trust_env=False) as client:

        def lines(path: str, **body: Any) -> list[dict[str, Any]]:
            return [json.loads(line) for line in client.post(path, json=body).text.splitlines()]

        lines("/api/pull", model="sprout")
        assert client.post("/api/copy", json={"source": "sprout", "destination": name}).status_code == 200
        pushed = lines("/api/push", model=name, insecure=True)
        assert contains([line["status"] for line in pushed], PUSHED)
        assert client.request("DELETE", "/api/delete", json={"model": name}).status_code == 200
        assert client.request("DELETE", "/api/delete", json={"model": "sprout"}).status_code == 200
        pulled = lines("/api/pull", model=name, insecure=True)
        assert contains([line["status"] for line in pulled], PULLED)
        assert all(line.keys() <= {"status", "digest", "total", "completed"} for line in pulled + pushed)
        answer = client.post("/api/generate", json={"model": name, "prompt": "Hello", "stream": False}).json()
        assert answer["done"] and answer["response"]
        assert client.post("/api/push", json={"model": name, "insecure": True, "stream": False}).json() == {
            "status": "success"
        }
        lost = lines("/api/push", model=f"{docker.host}/mia/lost", insecure=True)
        assert [line.get("status") for line in lost] == ["retrieving manifest", "couldn't retrieve manifest", None]
        unsure = lines("/api/pull", model=name)
        assert unsure[0] == {"status": "pulling manifest"}
        assert "use `--insecure`" in unsure[1]["error"]


def test_the_official_client(served: RunningServer, docker: Registry) -> None:
    name = f"{docker.host}/mia/sprout:client"
    client = ollama.Client(served.url, headers=served.headers, timeout=120, trust_env=False)
    with contextlib.closing(client._client):
        client.pull("sprout")
        client.copy("sprout", name)
        assert contains([str(line.status) for line in client.push(name, insecure=True, stream=True)], PUSHED)
        client.delete(name)
        client.delete("sprout")
        assert client.pull(name, insecure=True).status == "success"
        assert client.chat(name, [{"role": "user", "content": "Hello"}]).message.content


def test_with_a_password_and_tls(tmp_path: Path) -> None:
    """The password is where `docker login` stores it; ``serve`` creates the key for Ollama's own registries."""
    tls = certificate(tmp_path / "tls")
    home = tmp_path / "home"
    home.mkdir()
    with (
        docker_registry(tmp_path / "registry", tls=tls, password=True) as docker,
        serve(home, SSL_CERT_FILE=str(tls / "cert.pem")) as served,
    ):
        key = home / ".ollama" / "id_ed25519"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        name = f"{docker.host}/mia/sprout"
        succeed(served, "pull", "sprout")
        succeed(served, "cp", "sprout", name)
        refused = program(served, "push", name)
        assert refused.stderr.splitlines()[-1] == (
            f"Error: unauthorized: access denied: {docker.host} asks for a user name and a password; "
            f"run `docker login {docker.host}` to store them"
        )
        (home / ".docker").mkdir()
        config = {"auths": {docker.host: {"username": NAME, "password": PASSWORD}}}
        (home / ".docker" / "config.json").write_text(json.dumps(config), "utf-8")
        succeed(served, "push", name)
        succeed(served, "rm", name, "sprout")
        succeed(served, "pull", name)
        assert succeed(served, "run", name, "Hello").stdout.strip()
        assert PASSWORD not in served.output()
