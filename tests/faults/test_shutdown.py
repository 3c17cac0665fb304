"""A server that is terminated during replies: short ones finish, the others end with an error, no process is left."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.models import heavy
from support.processes import until
from support.servers import descendants, standalone
from support.stores import create

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
        options = {"num_predict": 4000, "num_ctx": 512, "num_thread": 1, "stop": []}
        body = json.dumps({"model": "m", "prompt": "Once", "raw": True, "logprobs": True, "top_logprobs": 20,
                           "options": options}).encode()  # fmt: skip
        address = urlsplit(server.url)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((address.hostname, address.port))
            client.sendall(
                b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert client.recv(1) == b"H"
            for _ in range(signals):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            assert server.process.wait(40) == 0  # without an end of the wait for the client, 65 seconds
        assert "Traceback" not in server.output()
