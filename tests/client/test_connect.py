"""Where a client finds a server, and in which order it looks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.fake_servers import Answer, ScriptedServer, Seen, error, ok

from ollama_nb import __version__
from ollama_nb.client import connect
from ollama_nb.errors import ConnectError
from ollama_nb.settings import Settings


@pytest.fixture
def other() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server of this machine is found, and none is started."""
    monkeypatch.setattr(connect, "DEFAULT_PORT", 1)

    def start(_: Settings) -> None:
        raise AssertionError("started a server")

    monkeypatch.setattr(connect, "start_background", start)


def with_key(key: str) -> Callable[[Seen], Answer]:
    """``HEAD /`` of a server that lets only this key in."""
    return lambda seen: Answer() if seen.headers.get("Authorization") == f"Bearer {key}" else error(401, "unauthorized")


def write_runtime(path: Path, server: ScriptedServer, key: str = "k", build: str = __version__) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"url": server.url, "key": key, "pid": os.getpid(), "build": build}), "utf-8")
    path.chmod(0o600)
    server.key = key


def test_a_given_address_comes_first(
    server: ScriptedServer, other: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", other.url)
    assert connect.connect(server.url).url == server.url
    assert connect.connect(f"127.0.0.1:{server.port}").url == server.url


def test_the_variable_comes_second(
    server: ScriptedServer, other: ScriptedServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runtime(home / ".ollama" / "nb" / "server.json", other)
    monkeypatch.setenv("OLLAMA_HOST", f' "{server.url}" ')
    monkeypatch.setenv("OLLAMA_API_KEY", "mine")
    assert connect.connect().url == server.url
    assert server.seen[0].headers["Authorization"] == "Bearer mine"


def test_a_given_address_is_never_replaced(
    server: ScriptedServer, other: ScriptedServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runtime(home / ".ollama" / "nb" / "server.json", other)
    server.close()
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    with pytest.raises(ConnectError, match="could not connect to ollama server, run 'ollama serve' to start it"):
        connect.connect()


def test_a_key_that_jupyter_exported_goes_to_its_address_only(
    server: ScriptedServer, other: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    monkeypatch.setenv("OLLAMA_API_KEY", "jupyters")
    monkeypatch.setenv("OLLAMA_NB_EXPORTED", "1")
    with pytest.raises(ConnectError, match="nothing was sent to it"):
        connect.connect()  # another program listens at Jupyter's address
    server.key = "jupyters"
    assert connect.connect().key == "jupyters"
    assert connect.connect(server.url).key == "jupyters"
    assert connect.connect(other.url).key == ""
    assert connect.connect(other.url, key="own").key == "own"


@pytest.mark.parametrize("named", [True, False])
def test_the_parent_jupyter_server(
    server: ScriptedServer, other: ScriptedServer, home: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Named by JPY_PARENT_PID, or one of the processes above this one."""
    folder = home / ".local" / "share" / "jupyter" / "runtime"
    pid = 4_000_000 if named else os.getppid()
    if named:
        monkeypatch.setenv("JPY_PARENT_PID", str(pid))
    server.routes["HEAD /"] = with_key("jk")
    write_runtime(folder / f"ollama-nb-{pid}.json", server, "jk")
    write_runtime(folder / "ollama-nb-3999999.json", other)
    write_runtime(home / ".ollama" / "nb" / "server.json", other)
    found = connect.connect()
    assert (found.url, found.key) == (server.url, "jk")


def test_a_jupyter_server_that_has_ended_is_skipped(
    server: ScriptedServer, other: ScriptedServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(home / "jr"))
    monkeypatch.setenv("JPY_PARENT_PID", "77")
    write_runtime(home / "jr" / "ollama-nb-77.json", server)
    write_runtime(home / ".ollama" / "nb" / "server.json", other)
    server.close()
    assert connect.connect().url == other.url


def test_the_background_server(
    server: ScriptedServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_NB_HOME", str(tmp_path / "state"))
    server.routes["HEAD /"] = with_key("k")
    write_runtime(tmp_path / "state" / "server.json", server)
    assert connect.connect().key == "k"
    write_runtime(tmp_path / "state" / "server.json", server, "wrong")
    with pytest.raises(ConnectError):
        connect.connect(start=False)


def test_a_background_server_of_another_build_is_not_used(server: ScriptedServer, home: Path) -> None:
    write_runtime(home / ".ollama" / "nb" / "server.json", server, build="0.0.1")
    with pytest.raises(ConnectError):
        connect.connect(start=False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose sockets they are")
def test_a_server_on_the_default_port(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "DEFAULT_PORT", server.port)
    assert connect.connect().url == server.url
    monkeypatch.setattr(connect.os, "getuid", lambda: 12345)
    asked = len(server.seen)
    with pytest.raises(ConnectError):
        connect.connect(start=False)
    assert len(server.seen) == asked  # another user's server receives no request


@pytest.mark.parametrize("answer", [Answer(200, [b"hello"]), error(500, "x")])
def test_another_program_on_the_default_port(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    server.routes["GET /"] = answer
    monkeypatch.setattr(connect, "DEFAULT_PORT", server.port)
    with pytest.raises(ConnectError):
        connect.connect(start=False)


def test_a_server_is_started_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="started a server"):
        connect.connect()


def test_requests_use_the_found_server(server: ScriptedServer, home: Path) -> None:
    def models(seen: Seen) -> Answer:
        return ok({"models": []}) if seen.headers.get("Authorization") == "Bearer k" else error(401, "unauthorized")

    server.routes["GET /api/tags"] = models
    write_runtime(home / ".ollama" / "nb" / "server.json", server)
    assert connect.connect().list() == {"models": []}


def test_the_key_of_a_server_that_this_user_started(
    server: ScriptedServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ollama serve`` tells this user's clients its own key; a key that was given comes first."""
    file = home / ".ollama" / "nb" / f"serve-{server.port}.json"
    write_runtime(file, server, key="its own")
    monkeypatch.setenv("OLLAMA_HOST", server.url)

    def offered() -> str | None:
        connect.connect()
        return server.seen[-1].headers.get("Authorization")

    assert offered() == "Bearer its own"
    monkeypatch.setenv("OLLAMA_API_KEY", "mine")
    assert offered() == "Bearer mine"
    monkeypatch.delenv("OLLAMA_API_KEY")
    file.write_text(file.read_text("utf-8").replace(server.url, "http://127.0.0.1:2"), "utf-8")
    assert offered() is None


def test_a_found_server_that_ended_is_followed_by_the_next(
    server: ScriptedServer, other: ScriptedServer, home: Path
) -> None:
    server.routes["HEAD /"] = with_key("k1")
    other.routes["HEAD /"] = with_key("k2")
    other.routes["GET /api/version"] = ok({"version": "2"})
    write_runtime(home / ".ollama" / "nb" / "server.json", server, "k1")
    client = connect.connect()
    twin = client.twin({"X-Mine": "1"})
    assert (client.url, client.key) == (server.url, "k1")
    server.close()
    write_runtime(home / ".ollama" / "nb" / "server.json", other, "k2")
    assert (client.version(), client.url, client.key) == ("2", other.url, "k2")
    assert twin.version() == "2"
    seen = other.seen[-1].headers
    assert (seen["Authorization"], seen["X-Mine"]) == ("Bearer k2", "1")


def test_a_given_server_that_ended_is_an_error(server: ScriptedServer, other: ScriptedServer, home: Path) -> None:
    client = connect.connect(server.url)
    write_runtime(home / ".ollama" / "nb" / "server.json", other)
    server.close()
    with pytest.raises(ConnectError, match="could not connect"):
        client.version()


def test_without_start_a_server_that_ended_is_an_error(server: ScriptedServer, home: Path) -> None:
    write_runtime(home / ".ollama" / "nb" / "server.json", server)
    client = connect.connect(start=False)
    server.close()
    with pytest.raises(ConnectError, match="could not connect"):
        client.version()


def test_threads_that_share_a_client_find_the_next_server_once(
    server: ScriptedServer, other: ScriptedServer, home: Path
) -> None:
    """No request goes to one server with the key of another."""
    server.routes["HEAD /"], other.routes["HEAD /"] = with_key("k1"), with_key("k2")
    other.routes["GET /api/version"] = ok({"version": "2"})
    write_runtime(home / ".ollama" / "nb" / "server.json", server, "k1")
    client = connect.connect()
    server.close()
    write_runtime(home / ".ollama" / "nb" / "server.json", other, "k2")
    with ThreadPoolExecutor(16) as threads:
        assert {*threads.map(lambda _: client.version(), range(64))} == {"2"}
    assert {seen.headers["Authorization"] for seen in other.seen} == {"Bearer k2"}
    assert [seen.method for seen in other.seen].count("HEAD") == 1  # one search for all threads
