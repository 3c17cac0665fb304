"""A server without free descriptors replies with an error, keeps its log short, and recovers."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.servers import RunningServer, clean_env, free_port, started, until, until_answers

MANY = 100
LIMIT = 64


@pytest.fixture
def limited_server(tmp_path: Path) -> Iterator[RunningServer]:
    address = f"127.0.0.1:{free_port()}"
    limited = ["sh", "-c", f'ulimit -n {LIMIT} && exec "$@"', "sh"]
    command = [*limited, sys.executable, "-P", "-m", "ollama_nb.server", "--host", address]
    with started(command, tmp_path, clean_env(tmp_path)) as (process, log):
        found = RunningServer(f"http://{address}", process, tmp_path, log)
        until_answers(found, f"{found.url}/")
        yield found


def descriptors(server: RunningServer) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def test_more_connections_than_descriptors(limited_server: RunningServer) -> None:
    host, _, port = limited_server.url.removeprefix("http://").partition(":")
    before, answers = descriptors(limited_server), set()
    with contextlib.ExitStack() as open_ones:
        for _ in range(MANY):
            open_ones.enter_context(socket.create_connection((host, int(port)), timeout=30))
        until(limited_server, lambda: descriptors(limited_server) >= LIMIT - 1)
        for _ in range(20):
            reply = httpx.get(f"{limited_server.url}/api/tags", timeout=30)
            answers.add((reply.status_code, reply.json()["error"], reply.json()["code"], reply.headers["Retry-After"]))
    assert answers == {(503, "too many connections are open, please try again", "busy", "1")}
    until(limited_server, lambda: descriptors(limited_server) <= before + 1)
    assert httpx.get(f"{limited_server.url}/api/tags", timeout=30).json() == {"models": []}
    assert "Traceback" not in limited_server.output()
    assert len(limited_server.output()) < 10_000
