"""A server that runs out of processes or descriptors answers 503 and recovers when they are free again."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from support.processes import until
from support.servers import (
    RestClient,
    RunningServer,
    clean_env,
    descendants,
    free_port,
    started,
    until_answers,
)

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(sys.platform != "linux" or not hasattr(resource, "prlimit"), reason="prlimit is Linux's"),
]
USER = 60123  # limits of processes do not apply to root; this user has none but those of the server
QUESTION = {"model": "m", "prompt": "Once", "stream": False, "options": {"num_predict": 4, "num_thread": 1}}


def as_user() -> list[str]:
    """The beginning of a command that runs as a user to which limits of processes apply: not root."""
    if os.getuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing: root's processes cannot be limited")
    capability = "-all,+dac_override"  # to read the files of this interpreter
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", f"--inh-caps={capability}",
            f"--ambient-caps={capability}"]  # fmt: skip


@contextlib.contextmanager
def limitable(home: Path) -> Iterator[RunningServer]:
    address = f"127.0.0.1:{free_port()}"
    command = [*as_user(), sys.executable, "-P", "-m", "ollama_nb.server", "--host", address]
    with started(command, home, clean_env(home)) as (process, log):
        server = RunningServer(f"http://{address}", process, home, log)
        until_answers(server, f"{server.url}/")
        yield server


@contextlib.contextmanager
def limited(server: RunningServer, kind: int, soft: int) -> Iterator[None]:
    """Lower a soft limit of the running server for the block."""
    code = f"import resource; _, hard = resource.prlimit({server.pid}, {kind}); "
    code += f"resource.prlimit({server.pid}, {kind}, (%s, hard))"
    subprocess.run([*as_user(), sys.executable, "-c", code % soft], check=True)
    try:
        yield
    finally:
        subprocess.run([*as_user(), sys.executable, "-c", code % "hard"], check=True)


def text_of(server: RunningServer, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"{server.url}{path}", timeout=60) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def ask(client: RestClient, **fields: Any) -> tuple[int, dict[str, Any]]:
    status, lines = client.request("POST", "/api/generate", json.dumps({**QUESTION, **fields}).encode())
    return status, lines[-1]


def with_model(server: RunningServer, models: Path) -> RestClient:
    client = RestClient(server)
    client.create("m", files={"m.gguf": client.add_blob((models / "stories260K-f32.gguf").read_bytes())})
    assert ask(client)[0] == 200
    return client


@pytest.mark.timeout(600)
def test_without_free_processes_loads_get_503_and_readyz_reports_it(tmp_path: Path, models: Path) -> None:
    """F36: under a limit of processes every load is refused at once, and served again when the limit is raised."""
    with limitable(tmp_path) as server:
        client = with_model(server, models)
        before = len(descendants(server.pid))
        assert ask(client, keep_alive=0)[0] == 200
        until(lambda: len(descendants(server.pid)) < before)
        with limited(server, resource.RLIMIT_NPROC, 1):
            for _ in range(3):
                status, reply = ask(client)
                assert (status, reply["code"]) == (503, "busy"), reply
            until(lambda: text_of(server, "/readyz")[0] == 503)
            assert "cannot be started" in text_of(server, "/readyz")[1]
            assert text_of(server, "/livez") == (200, "ok")
        assert ask(client)[0] == 200
        until(lambda: text_of(server, "/readyz") == (200, "ok"))
        assert len(descendants(server.pid)) <= before, "children of failed starts are left"


@pytest.mark.timeout(600)
def test_without_free_descriptors_loads_get_503(tmp_path: Path, models: Path) -> None:
    """F36: under a limit of descriptors a load is refused, and served again when the limit is raised."""
    with limitable(tmp_path) as server:
        client = with_model(server, models)
        assert ask(client, keep_alive=0)[0] == 200
        until(lambda: not client.request("GET", "/api/ps", b"")[1][-1]["models"])
        used = {int(entry.name) for entry in Path(f"/proc/{server.pid}/fd").iterdir()}
        free = (number for number in range(3, 1 << 16) if number not in used)
        next(free)  # for the connection of the request
        with limited(server, resource.RLIMIT_NOFILE, next(free) + 1):
            status, reply = ask(client)
            assert (status, reply["code"]) == (503, "busy"), reply
        assert ask(client)[0] == 200
        assert text_of(server, "/livez") == (200, "ok")


def tasks(server: RunningServer) -> int:
    """Threads of the server and its descendants, which count against its user's limit of processes."""
    counts = [0, 1]
    while counts[-1] != counts[-2]:  # until the last runner is gone
        time.sleep(0.5)
        with contextlib.suppress(FileNotFoundError):
            pids = descendants(server.pid) | {server.pid}
            counts.append(sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids))
    return counts[-1]


@pytest.mark.timeout(600)
def test_wherever_a_start_runs_out_of_processes_it_is_reported(tmp_path: Path, models: Path) -> None:
    """F36: the limit is reached at the fork, at each thread that watches the child, and at each thread of the child."""
    with limitable(tmp_path) as server:
        client = with_model(server, models)
        outcomes = []
        for room in range(7):
            assert ask(client, keep_alive=0)[0] == 200
            with limited(server, resource.RLIMIT_NPROC, tasks(server) + room):
                status, reply = ask(client)
                outcomes.append((status, reply.get("code")))
        assert set(outcomes) <= {(503, "busy"), (200, None)}, outcomes
        assert (503, "busy") in outcomes
        assert ask(client)[0] == 200
