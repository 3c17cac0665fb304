"""A server that is terminated during replies: short ones finish, the others end with an error, no process is left."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.chaos_registry import Handler, chaos_registry
from support.models import heavy
from support.processes import until
from support.servers import RunningServer, descendants, standalone
from support.stores import create

from ollama_nb.server.app import END_SECONDS
from ollama_nb.store.store import Store

pytestmark = pytest.mark.model


def question(predict: int) -> dict[str, Any]:
    options = {"num_predict": predict, "num_ctx": 512, "seed": 1, "num_thread": 1}
    return {"model": "endless", "prompt": " bababa" * 4, "raw": True, "options": options}


def test_a_signal_in_mid_reply(tmp_path: Path) -> None:
    create(Store(tmp_path / ".ollama" / "models"), "endless", files={"m.gguf": heavy(tmp_path / "m").read_bytes()})
    with standalone(tmp_path) as server:
        connections = [http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60) for _ in range(2)]
        replies = []
        for connection, predict in zip(connections, (100_000, 30), strict=True):
            connection.request("POST", "/api/generate", json.dumps(question(predict)))
            replies.append(connection.getresponse())
            assert not json.loads(replies[-1].readline())["done"]
        children = descendants(server.pid)
        assert children
        server.process.send_signal(signal.SIGTERM)
        ends = [[json.loads(line) for line in reply][-1] for reply in reversed(replies)]
        assert ends[0]["done"] and ends[0]["done_reason"] == "length", "what ends soon may end"
        assert ends[1] == {"error": "server is shutting down", "code": "shutting_down"}
        assert server.process.wait(60) == 0
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
        assert "Traceback" not in server.output()
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_reader_that_stalls_does_not_hold_the_server(tmp_path: Path, models: Path, signals: int) -> None:
    """F33: after the drain, the connection of a client that does not read is closed, and the server ends with 0."""
    create(
        Store(tmp_path / ".ollama" / "models"), "m", files={"m.gguf": (models / "stories260K-f32.gguf").read_bytes()}
    )
    with standalone(tmp_path) as server:
        # Far more bytes of reply than the sockets' buffers hold.
        body = json.dumps({"model": "m", "prompt": "\n" * 4_000_000}).encode()
        address = urlsplit(server.url)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((address.hostname, address.port))
            client.sendall(
                b"POST /api/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert client.recv(1) == b"H"
            for _ in range(signals):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            assert server.process.wait(40) == 0  # without an end of the wait for the client, 65 seconds
            rest = bytearray()
            with contextlib.suppress(ConnectionResetError):
                while data := client.recv(1 << 16):
                    rest += data
        head, _, received = rest.partition(b"\r\n\r\n")
        assert b" 200 OK" in head and not received.endswith(b"}")  # the reply was being sent
        assert "Traceback" not in server.output()


BLOCKED_PULL = """
import threading
from ollama_nb.store.transfer import pull
pull.ModelPull.run = lambda *_: threading.Event().wait()
"""
BLOCKED_THREAD = """
import sys, threading
if "ollama_nb.server" in sys.orig_argv:
    threading.Thread(target=threading.Event().wait, name="blocked").start()
"""


def ask_to_pull(server: RunningServer, name: str) -> socket.socket:
    """Send a pull request and return its connection, once the reply has begun or the server works on it."""
    address = urlsplit(server.url)
    body = json.dumps({"model": name, "insecure": True}).encode()
    client = socket.create_connection((address.hostname, address.port), timeout=60)
    client.sendall(b"POST /api/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return client


@pytest.mark.parametrize("module", [BLOCKED_PULL, BLOCKED_THREAD], ids=["worker", "thread"])
def test_a_blocked_thread_does_not_hold_the_server(tmp_path: Path, module: str) -> None:
    """F33: a thread that ignores cancellation; the process ends all the same, and its children with it."""
    create(Store(tmp_path / ".ollama" / "models"), "endless", files={"m.gguf": heavy(tmp_path / "m").read_bytes()})
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(module)
    with standalone(tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}) as server:
        loaded = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
        loaded.request("POST", "/api/generate", json.dumps({"model": "endless"}))
        assert loaded.getresponse().read()
        children = descendants(server.pid)
        assert children
        with ask_to_pull(server, "127.0.0.1:1/a/m"):
            time.sleep(0.5)  # for the pull to begin; were it late, the test would be weaker, not wrong
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(END_SECONDS + 30) == 1
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
        assert "Timeout (" in server.output()
        loaded.close()
        with pytest.raises(OSError):
            socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), timeout=5).close()


def drip(begin: bytes) -> Callable[[Handler], bool]:
    """Send ``begin`` and then a byte at a time, without an end."""

    def gate(handler: Handler) -> bool:
        with contextlib.suppress(OSError):
            handler.wfile.write(begin)
            while not handler.registry.released.wait(0.05):
                handler.wfile.write(b" ")
        handler.cut()
        return True

    return gate


@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3d0900\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 ",
    ],
    ids=["body", "chunk", "error", "header", "status"],
)
def test_a_registry_that_drips_does_not_hold_the_server(tmp_path: Path, begin: bytes) -> None:
    """F33: bytes of a manifest arrive forever; SIGTERM cancels the pull, and the server ends in order."""
    with chaos_registry() as registry, standalone(tmp_path) as server:
        registry.gate = drip(begin)
        with ask_to_pull(server, f"{registry.host}/a/m"):
            until(lambda: bool(registry.asked))
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(END_SECONDS + 30) == 0
        assert "Traceback" not in server.output() and "Timeout (" not in server.output()
