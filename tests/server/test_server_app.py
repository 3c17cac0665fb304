"""The standalone server as a process: start, refusals to start, end."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from support.aio import in_loop
from support.servers import clean_env, descendants, end, free_port, standalone, until

from ollama_nb.server.access import Keys
from ollama_nb.server.app import run
from ollama_nb.server.standalone import bind
from ollama_nb.server.state import ServerState
from ollama_nb.settings import Host, Settings

SERVER = [sys.executable, "-P", "-m", "ollama_nb.server"]


def refused(home: Path, *args: str, **env: str) -> str:
    """The output of a server that does not start."""
    home.mkdir(exist_ok=True)
    done = subprocess.run([*SERVER, *args], env=clean_env(home, **env), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.model
def test_start_serve_and_stop(tmp_path: Path) -> None:
    with standalone(tmp_path / "home") as server:
        until(server, lambda: "Listening on" in server.output())
        assert f"Listening on {server.url.removeprefix('http://')} (version " in server.output()
        assert "Warning" not in server.output()
        loaded = httpx.post(f"{server.url}/api/generate", json={"model": "sprout"}, timeout=120)
        assert loaded.json()["done_reason"] == "load"
        (running,) = httpx.get(f"{server.url}/api/ps", timeout=120).json()["models"]
        assert running["name"] == "sprout:latest"
        children = descendants(server.pid)
        assert children
        port = server.url.rpartition(":")[2]
        assert refused(tmp_path / "other", "--host", f"127.0.0.1:{port}") == (
            f"Error: listen tcp 127.0.0.1:{port}: bind: address already in use"
        )
        assert end(server.process) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        assert "secret" not in server.output() and "Traceback" not in server.output()


def test_sigint_ends_the_server(tmp_path: Path) -> None:
    with standalone(tmp_path) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0


def test_a_public_address_gives_a_warning_and_no_host_check(tmp_path: Path) -> None:
    port = free_port()
    with standalone(tmp_path, host=f"0.0.0.0:{port}") as server:
        until(server, lambda: "Listening on" in server.output())
        assert server.output().count("Warning: everyone who can reach") == 1
        reply = httpx.get(f"http://127.0.0.1:{port}/", headers={"Host": "models.example.org"}, timeout=120)
        assert reply.text == "Ollama is running"


def test_once_a_key_exists_every_request_needs_one(tmp_path: Path) -> None:
    """This user's own clients have a key of their own; OLLAMA_NB_REQUIRE_KEY allows a start with a key only."""
    env = clean_env(tmp_path)
    program = [sys.executable, "-P", "-m", "ollama_nb.cli.main"]
    made = subprocess.run([*program, "keys", "add", "anna"], env=env, capture_output=True, text=True, check=True)
    key = next(line.strip() for line in made.stdout.splitlines() if "onb_" in line)
    port = free_port()
    with standalone(tmp_path, host=f"0.0.0.0:{port}", env={"OLLAMA_NB_REQUIRE_KEY": "1"}) as server:
        until(server, lambda: "Listening on" in server.output())
        assert "Warning" not in server.output()
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/api/tags", timeout=120).status_code == 401
        assert httpx.get(f"{url}/api/tags", headers={"Authorization": f"Bearer {key}"}, timeout=120).status_code == 200
        told = tmp_path / ".ollama" / "nb" / f"serve-{port}.json"
        assert stat.S_IMODE(told.stat().st_mode) == 0o600
        local = [*program, "list"]
        for host, code in ((url, 0), (f"127.0.0.1:{port}", 0)):
            done = subprocess.run(local, env={**env, "OLLAMA_HOST": host}, capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
        subprocess.run([*program, "keys", "rm", "anna"], env=env, check=True, capture_output=True)
        assert httpx.get(f"{url}/api/tags", headers={"Authorization": f"Bearer {key}"}, timeout=120).status_code == 401
        assert key not in server.output()
    assert not told.exists()


def test_a_free_port_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([*SERVER, "--host", "127.0.0.1:0"], env=clean_env(tmp_path), stderr=output)
    try:
        while "Listening on 127.0.0.1:" not in log.read_text():
            assert process.poll() is None
        address = log.read_text().partition("Listening on ")[2].split()[0]
        assert httpx.get(f"http://{address}/", timeout=120).status_code == 200
    finally:
        end(process)


def test_refusals_to_start(tmp_path: Path) -> None:
    assert refused(tmp_path, OLLAMA_NB_REQUIRE_KEY="1").startswith("Error: OLLAMA_NB_REQUIRE_KEY is set")
    assert refused(tmp_path, "--host", "127.0.0.1:0", OLLAMA_ORIGINS="evil.com").startswith("Error: OLLAMA_ORIGINS")
    assert refused(tmp_path, "--host", "no.such.host.invalid:1") == (
        "Error: listen tcp: lookup no.such.host.invalid: no such host"
    )


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".ollama" / "models").mkdir(parents=True)
    (tmp_path / ".ollama" / "models").chmod(0)
    try:
        with standalone(tmp_path) as server:
            reply = httpx.get(f"{server.url}/api/tags", timeout=120)
            assert reply.status_code == 500 and "permission denied" in reply.json()["error"]
            assert httpx.get(f"{server.url}/readyz", timeout=120).status_code == 503
    finally:
        (tmp_path / ".ollama" / "models").chmod(stat.S_IRWXU)


def test_a_models_path_that_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with standalone(tmp_path, env={"OLLAMA_MODELS": str(tmp_path / "file")}) as server:
        reply = httpx.post(f"{server.url}/api/generate", json={"model": "sprout", "prompt": "hi"}, timeout=30)
        assert reply.status_code == 500 and reply.json()["error"]
        assert httpx.get(f"{server.url}/livez", timeout=120).text == "ok"


@in_loop
async def test_a_server_whose_watch_fails_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error of the task that would end an idle background server is logged, and the server does not run forever."""

    async def fail(state: ServerState, stop: asyncio.Event) -> None:
        raise ValueError("no clock")

    settings = Settings(models=tmp_path / "models", home=tmp_path / "nb")
    async with asyncio.timeout(60):
        await run(settings, bind(Host(host="127.0.0.1", port=0)), keys=Keys("key"), meanwhile=fail)
    assert "its watch has failed" in caplog.text and "no clock" in caplog.text
