"""``serve``: the address and the environment."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import RunCommand

from ollama_nb.cli import serve
from ollama_nb.errors import BadRequest
from ollama_nb.settings import Host, Settings

DEFAULT = Host()


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("", None, "127.0.0.1:11434"),
        ("", 8080, "127.0.0.1:8080"),
        ("", 0, "127.0.0.1:0"),
        ("0.0.0.0", None, "0.0.0.0:11434"),
        ("0.0.0.0:8080", None, "0.0.0.0:8080"),
        ("0.0.0.0:8080", 9, "0.0.0.0:9"),
        ("[::]:11434", None, "[::]:11434"),
        (":8080", None, ":8080"),
        ("http://1.2.3.4:80", None, "1.2.3.4:80"),
    ],
)
def test_address(host: str, port: int | None, expected: str) -> None:
    assert serve.address(host, port, DEFAULT).address == expected


@pytest.mark.parametrize("host", ["1.2.3.4:99999", "1.2.3.4:x", "a b", "a?b"])
def test_invalid_addresses(host: str) -> None:
    with pytest.raises(BadRequest) as caught:
        serve.address(host, None, DEFAULT)
    assert caught.value.message == f'invalid value for --host: "{host}"'


@pytest.mark.parametrize("port", [-1, 65536])
def test_invalid_ports(port: int) -> None:
    with pytest.raises(BadRequest, match="invalid value for --port"):
        serve.address("", port, DEFAULT)


@pytest.fixture
def listened(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the server would have been started with."""
    found: list[Settings] = []

    async def listen(settings: Settings) -> None:
        await asyncio.sleep(0)
        found.append(settings)

    monkeypatch.setattr(serve, "listen", listen)
    monkeypatch.setattr(serve, "set_up_logging", lambda _: None)
    return found


def test_the_flag_overrides_the_variable(
    ollama: RunCommand, listened: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    assert ollama("serve", "--host", "127.0.0.1:2").code == 0
    assert ollama("start").code == 0
    assert [settings.host.port for settings in listened] == [2, 2]  # child processes find it: the variable is set


def test_an_address_that_jupyter_exported_is_ignored(
    ollama: RunCommand, listened: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_NB_EXPORTED", "1")
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:8888/ollama")
    monkeypatch.setenv("OLLAMA_API_KEY", "jupyters")
    result = ollama("serve")
    assert listened[0].host == Host()
    assert "OLLAMA_HOST is http://127.0.0.1:8888/ollama, the address of Jupyter's server" in result.err
    assert "jupyters" not in result.err


def test_a_new_key_is_shown_once(ollama: RunCommand, listened: list[Settings]) -> None:
    told = ollama("serve").out
    key = listened[0].key
    assert f"Couldn't find '{key}'" in told
    assert f"\n\n{key.with_suffix('.pub').read_text()}\n" in told
    assert ollama("serve").out == ""


def test_a_port_in_use(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "ollama_nb.cli.main", "serve", "--host", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == f"Error: listen tcp {address}: bind: address already in use\n"
