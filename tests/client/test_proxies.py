from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from support.fake_servers import ScriptedServer, ok

from ollama_nb.client.client import Client
from ollama_nb.client.proxies import proxy_for

PROXY = {"http_proxy": "http://proxy:3128", "HTTPS_PROXY": "proxy:3129"}


@pytest.mark.parametrize(
    ("url", "no_proxy", "proxy"),
    [
        ("http://hub.example", "", "proxy:3128"),
        ("https://hub.example", "", "proxy:3129"),
        ("http://127.0.0.1:11434", "", None),
        ("http://127.1.2.3", "", None),
        ("http://localhost:1", "", None),
        ("https://[::1]:1", "", None),
        ("http://hub.example", "*", None),
        ("http://hub.example", "other, example", None),
        ("http://hub.example", ".example", None),
        ("http://hub.example", "hub.EXAMPLE", None),
        ("http://thub.example", "hub.example", "proxy:3128"),
        ("http://hub.example:81", "hub.example:80", "proxy:3128"),
        ("http://hub.example:80", "hub.example:80", None),
    ],
)
def test_proxy_for(url: str, no_proxy: str, proxy: str | None) -> None:
    found = proxy_for(urlsplit(url), {**PROXY, "NO_PROXY": no_proxy})
    assert (found.netloc if found else None) == proxy


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
