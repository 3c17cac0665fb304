"""A server that is terminated during replies: short ones finish, the others end with an error, no process is left."""

from __future__ import annotations

import http.client
import json
import signal
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
