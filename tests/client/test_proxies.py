from __future__ import annotations

import pytest
from support.fake_servers import ScriptedServer, ok

from ollama_nb.client.client import Client


def test_requests_to_another_machine_go_through_the_proxy(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{server.port}")
    server.routes["GET http://hub.example:8000/base/api/ps"] = ok({"models": []})
    assert Client("http://hub.example:8000/base").ps() == {"models": []}
    assert server.seen[0].headers["Proxy-Authorization"] == "Basic bWU6cEBzcw=="
    assert server.seen[0].headers["Host"] == "hub.example:8000"
