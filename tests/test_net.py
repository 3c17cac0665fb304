from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ollama_nb import net

PROXY = {"http_proxy": "http://proxy:3128", "HTTPS_PROXY": "proxy:3129"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST", "a.localhost", "::1", "::1%lo"])
def test_loopback_hosts(host: str) -> None:
    assert net.is_loopback(host)
    assert net.is_loopback_url(f"http://{net.host_and_port(host, 80)}/x")


@pytest.mark.parametrize("host", ["", "10.0.0.1", "0.0.0.0", "::", "example.org", "localhost.example.org"])
def test_hosts_that_are_not_loopback(host: str) -> None:
    assert not net.is_loopback(host)


def test_a_url_without_a_valid_host_is_not_loopback() -> None:
    assert not net.is_loopback_url("http://[::1")
    assert not net.is_loopback_url("")


def test_bound_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as local, socket.create_server(("", 0)) as public:
        assert net.is_loopback_socket(local)
        assert not net.is_loopback_socket(public)


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
        ("http://hub.example", "hub.example:80", None),
        ("https://hub.example", "hub.example:80", "proxy:3129"),
    ],
)
def test_proxy_for(url: str, no_proxy: str, proxy: str | None) -> None:
    found = net.proxy_for(urlsplit(url), {**PROXY, "NO_PROXY": no_proxy})
    assert (found.netloc if found else None) == proxy


def test_proxy_headers() -> None:
    assert net.proxy_headers(urlsplit("http://proxy:3128")) == {}
    expected = {"Proxy-Authorization": "Basic bWU6cEBzcw=="}
    assert net.proxy_headers(urlsplit("http://me:p%40ss@proxy:3128")) == expected


@pytest.mark.parametrize(
    ("env", "value"),
    [
        ({}, None),
        ({"no_proxy": "a"}, None),
        ({"HTTP_PROXY": "p"}, "127.0.0.1"),
        ({"https_proxy": "p", "NO_PROXY": "a, b", "no_proxy": "b"}, "b,a,127.0.0.1"),
        ({"all_proxy": "p", "NO_PROXY": "*"}, None),
    ],
)
def test_no_proxy_for(env: dict[str, str], value: str | None) -> None:
    assert net.no_proxy_for(["127.0.0.1"], env) == value


def test_users_that_listen_on_a_port(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   {}: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  {}        0 1 1 0 100 0\n"
    table.write_text(
        head
        + row.format(0, "0100007F", 11434, "0A", 1000)
        + row.format(1, "00000000", 11434, "0A", 1001)
        + row.format(2, "0100007F", 11434, "01", 1002)
        + row.format(3, "0100007F", 80, "0A", 1003)
    )
    assert net.listening_users(11434, (str(table), str(tmp_path / "none"))) == {1000, 1001}
    assert net.listening_users(81, (str(table),)) == set()
    assert net.listening_users(81, (str(tmp_path / "none"),)) is None
