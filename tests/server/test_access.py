"""Rules for the headers Host, Origin and Authorization."""

from __future__ import annotations

import ipaddress

import pytest

from ollama_nb.errors import BadRequest
from ollama_nb.server.access import (
    HostKind,
    Keys,
    Origins,
    client_of,
    cors_headers,
    host_kind,
    preflight_headers,
    same_origin,
)  # fmt: skip

OWN = ipaddress.ip_address("203.0.113.7")


@pytest.mark.parametrize(
    "host",
    [
        "", "localhost", "LOCALHOST", "localhost:11434", "localhost:", "box", "Box:80", "a.localhost", "x.y.local",
        "printer.local:631", "db.internal", "DB.INTERNAL:1",
    ],
)  # fmt: skip
def test_names_of_this_machine(host: str) -> None:
    """S18: Host headers with a name of this machine."""
    assert host_kind(host, "box", lambda a: a == OWN) is HostKind.NAME


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1:11434", "127.1.2.3", "0.0.0.0", "10.1.2.3:80", "172.16.0.1", "172.31.255.255",
        "192.168.1.1:11434", "[::1]", "[::1]:11434", "::1", "[::]", "[fd00::1]:80", "[::ffff:127.0.0.1]",
        "203.0.113.7", "203.0.113.7:11434", "[::ffff:203.0.113.7]",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_network(host: str) -> None:
    """S18: Host headers with an address of this machine or its network."""
    assert host_kind(host, "box", lambda a: a == OWN) is HostKind.ADDRESS


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "evil.com:11434", "localhost.evil.com", "localhost.", "evil.local.com", "notlocalhost", "8.8.8.8",
        "8.8.8.8:11434", "172.32.0.1", "192.169.0.1", "198.18.0.1", "100.64.0.1", "169.254.169.254",
        "[2001:db8::1]", "[fe80::1%eth0]", "[fe80::1]:80", "127.0.0.1.evil.com", "127.1", "0x7f000001", "2130706433",
        "evil.com,localhost", "evil.com, x.localhost", "localhost/", "http://localhost", "user@localhost",
        "evil.com#.local", "evil.com/.local", "[::1", "[::1]evil", "[::1]:80evil", "localhost:80:80", ".local",
        "-.local.", "localhost:80evil", "xn--lcalhost-3zb", "boxx",
    ],
)  # fmt: skip
def test_foreign_hosts(host: str) -> None:
    """S18: Host headers of DNS rebinding, and spellings that pass for this machine's."""
    assert host_kind(host, "box", lambda a: a == OWN) is HostKind.FOREIGN


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True), ("https://localhost", True), ("http://localhost:3000", True),
        ("http://127.0.0.1", True), ("https://127.0.0.1:8443", True), ("http://0.0.0.0:1", True),
        ("app://obsidian.md", True), ("file://", True), ("tauri://localhost", True), ("vscode-webview://x", True),
        ("vscode-file://vscode-app", True),
        ("http://evil.com", False), ("http://localhost.evil.com", False), ("http://127.0.0.1.evil.com", False),
        ("null", False), ("", False), ("http://[::1]:11434", False), ("chrome-extension://abc", False),
        ("https://localhostx", False), ("ftp://localhost", False), ("HTTP://LOCALHOST", False),
        ("http://192.168.1.1", False),
    ],
)  # fmt: skip
def test_built_in_origins(origin: str, allowed: bool) -> None:
    """S19: origins of browsers and desktop programs."""
    assert Origins.parse().allow(origin) is allowed


def test_own_origins() -> None:
    """S19: origins that the user allows."""
    origins = Origins.parse(("https://*.example.com", "chrome-extension://abc", "http://192.168.1.1:*"))
    assert origins.allow("https://a.example.com") and origins.allow("http://192.168.1.1:80")
    assert origins.allow("chrome-extension://abc") and origins.allow("http://localhost")
    assert not origins.allow("https://example.com") and not origins.allow("http://a.example.com")
    assert not origins.allow_all and Origins.parse(("*",)).allow_all and Origins.parse(("*",)).allow("null")
    assert not Origins(("ab*ba",)).allow("aba")


@pytest.mark.parametrize("entry", ["example.com", "ws://x", "https://*.x.*", "**"])
def test_invalid_origins(entry: str) -> None:
    with pytest.raises(BadRequest, match="OLLAMA_ORIGINS"):
        Origins.parse((entry,))


def test_cors_headers() -> None:
    origin = "http://localhost:3000"
    assert cors_headers(origin, Origins.parse()) == {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
    assert cors_headers(origin, Origins.parse(("*",))) == {"Access-Control-Allow-Origin": "*"}
    headers = preflight_headers(origin, Origins.parse())
    assert headers["Access-Control-Max-Age"] == "43200" and headers["Access-Control-Allow-Origin"] == origin
    assert headers["Access-Control-Allow-Methods"] == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    assert headers["Vary"] == "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
    allowed = headers["Access-Control-Allow-Headers"].split(",")
    assert {"Authorization", "x-stainless-runtime-version", "x-api-key", "anthropic-version"} <= set(allowed)
    assert "Access-Control-Allow-Credentials" not in headers


def test_same_origin() -> None:
    assert same_origin("http://box:80", "box:80") and same_origin("https://box", "box")
    assert not same_origin("http://box", "box:80") and not same_origin("null", "")


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"Authorization": "Bearer secret"}, True), ({"Authorization": "bearer  secret"}, True),
        ({"Authorization": "token other"}, True), ({"x-api-key": "secret"}, True),
        ({}, False), ({"Authorization": "Bearer"}, False), ({"Authorization": "Bearer secre"}, False),
        ({"Authorization": "Bearer secrets"}, False), ({"Authorization": "secret"}, False),
        ({"Authorization": "Basic secret"}, False), ({"x-api-key": ""}, False), ({"x-api-key": "\u00e9"}, False),
        ({"Authorization": "Bearer secret x"}, False),
    ],
)  # fmt: skip
def test_keys(headers: dict[str, str], accepted: bool) -> None:
    assert Keys("secret", "other").accept(headers) is accepted


def test_an_empty_key_accepts_no_request() -> None:
    assert not Keys() and not Keys("") and not Keys("").accept({"Authorization": "Bearer "}) and Keys("x")


def test_a_client_is_a_key_or_a_process_or_an_address() -> None:
    kernel = {"X-Ollama-Client": "kernel-1"}
    assert client_of(kernel, "127.0.0.1") != client_of({}, "127.0.0.1") != client_of({}, "10.0.0.1")
    with_key = {"Authorization": "Bearer onb_secret"}
    assert client_of(with_key, "127.0.0.1") == client_of({**with_key, **kernel}, "10.0.0.1")
    assert "onb_" not in client_of(with_key, "127.0.0.1"), "a client's name is no secret"
    shared = {"Authorization": "Bearer of the Jupyter server"}
    assert client_of(shared, "127.0.0.1") != client_of({**shared, **kernel}, "127.0.0.1")
