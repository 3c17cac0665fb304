"""A server was killed, and another program listens on its port: it must receive neither the key nor the prompt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from support.processes import of_session, until
from support.servers import RunningServer, clean_env, jupyter, runtime_info, standalone, started
from support.servers import until as until_running

from ollama_nb import Client, runtime
from ollama_nb.client import connect as connecting
from ollama_nb.errors import ConnectError
from ollama_nb.server import neighbours

PROMPT = "a confidential prompt"
NOBODY = 65534

LISTENER = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if sys.argv[2] != "0":
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
print("ready", flush=True)
while True:
    client, _ = listening.accept()
    client.settimeout(1)
    data = b""
    try:
        while b"\\r\\n\\r\\n" not in data and (piece := client.recv(65536)):
            data += piece
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nX-Ollama-Proof: " + b"0" * 64 + b"\\r\\n\\r\\n")
        while piece := client.recv(65536):
            data += piece
    except OSError:
        pass
    client.close()
    print(repr(data), flush=True)
"""
"""Accepts any request, and prints all that it receives. It runs as the user of the second argument, 0: as this one."""


class Thief:
    """A program that listens on a port and remembers what it received."""

    def __init__(self, port: int, uid: int) -> None:
        command = [sys.executable, "-I", "-c", LISTENER, str(port), str(uid)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self._process.stdout or ()))
        self._reader.start()

    def close(self) -> str:
        """End the program; return all that it received."""
        until(lambda: not self._busy())
        self._process.kill()
        self._process.communicate()
        self._reader.join()
        return "\n".join(self.lines)

    def _busy(self) -> bool:
        """Whether a client is connected still."""
        port = int(self._process.args[4])  # type: ignore[index]
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(int(row[1].rpartition(":")[2], 16) == port and row[3] == "01" for row in rows)


def uids() -> list[object]:
    as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a program of another user")
    return [pytest.param(0, id="this user"), pytest.param(NOBODY, id="another user", marks=as_root)]


@pytest.fixture(params=uids())
def uid(request: pytest.FixtureRequest) -> int:
    """The user whose program takes over the port."""
    found: int = request.param
    return found


@contextlib.contextmanager
def thief_on(url: str, uid: int) -> Iterator[Thief]:
    thief = Thief(urlsplit(url).port or 0, uid)
    try:
        yield thief
    finally:
        thief.close()


def killed_background(home: Path) -> dict[str, str]:
    """Start and kill a background server; return its runtime file, which stays."""
    client = connecting.connect()
    file = home / ".ollama" / "nb" / "server.json"
    found: dict[str, str] = json.loads(file.read_bytes())
    assert client.key == found["key"]
    kill_session(int(found["pid"]))
    return found


def kill_session(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not of_session(pid))


@pytest.fixture
def no_default_port(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "DEFAULT_PORT", 1)


def secrets_in(received: str, key: str) -> list[str]:
    return [secret for secret in (key, "Authorization", PROMPT) if secret in received]


@pytest.mark.model
@pytest.mark.usefixtures("no_default_port")
def test_the_port_of_a_killed_background_server(home: Path, uid: int) -> None:
    """S29: who listens on the port of a killed background server gets no key, from old clients and from new ones."""
    old = connecting.connect()
    found = killed_background(home)
    with thief_on(found["url"], uid) as thief:
        # No further server is started: the old client must report the error.
        with pytest.raises(ConnectError, match="nothing was sent to it"):
            Client(old.url, old.key, trust="key").generate("tiny", PROMPT, stream=False)
        with pytest.raises(ConnectError):
            connecting.connect(start=False)
        received = thief.close()
    assert "X-Ollama-Challenge" in received
    assert secrets_in(received, found["key"]) == []


@pytest.mark.model
@pytest.mark.usefixtures("no_default_port")
def test_clients_of_a_killed_background_server_find_the_next_one(home: Path, uid: int) -> None:
    client = connecting.connect()
    found = killed_background(home)
    with thief_on(found["url"], uid) as thief:
        assert client.list() == {"models": []}  # a new server, started in place of the killed one
        assert client.url != found["url"]
        received = thief.close()
    assert secrets_in(received, found["key"]) == []
    kill_session(int(json.loads((home / ".ollama" / "nb" / "server.json").read_bytes())["pid"]))


@pytest.mark.model
@pytest.mark.usefixtures("no_default_port")
def test_the_process_id_of_a_killed_server_belongs_to_another_process(home: Path, uid: int) -> None:
    """S29: a living process with the id in the file, its start time included, proves nothing."""
    found = killed_background(home)
    file = home / ".ollama" / "nb" / "server.json"
    with thief_on(found["url"], uid) as thief:
        file.write_text(json.dumps({**found, "pid": os.getppid()}))
        with pytest.raises(ConnectError):
            connecting.connect(start=False)
        received = thief.close()
    assert "X-Ollama-Challenge" in received
    assert secrets_in(received, found["key"]) == []


@pytest.mark.model
def test_the_port_of_a_killed_jupyter_server(tmp_path: Path, uid: int) -> None:
    """S29: processes that a Jupyter server leaves behind do not send its key to the next program on its port."""
    with jupyter(tmp_path) as server:
        found = runtime_info(server)
        direct = Client(found["url"], found["key"], trust="key")
        assert direct.list() == {"models": []}
        kill_session(server.pid)
        exported = {"OLLAMA_HOST": found["url"], "OLLAMA_API_KEY": found["key"], "OLLAMA_NB_EXPORTED": "1"}
        parent = {"JPY_PARENT_PID": str(server.pid)}
        code = (
            "import ollama_nb.client.connect as c; c.DEFAULT_PORT = 1\n"
            f"try: c.connect(start=False).generate('tiny', {PROMPT!r}, stream=False)\n"
            "except c.ConnectError as error: print('refused', error)"
        )
        with thief_on(found["url"], uid) as thief:
            for variables in (exported, parent):
                env = clean_env(tmp_path, **variables)
                done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
                assert done.stdout.startswith("refused"), done
            received = thief.close()
    assert received.count("X-Ollama-Challenge") >= 2
    assert secrets_in(received, found["key"]) == []


@pytest.mark.model
def test_a_server_relays_nothing_to_the_port_of_a_killed_neighbour(tmp_path: Path, uid: int) -> None:
    """S29: neighbours are asked for a proof, too."""
    with standalone(tmp_path / "server") as server:
        home = server.home / ".ollama" / "nb"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        other = runtime.RuntimeInfo(url, "the neighbour's key", os.getpid())
        file = runtime.serve_file(home, 1)
        file.write_text(json.dumps({"url": url, "key": other.key, "pid": os.getpid(), "build": ""}))
        file.chmod(0o600)
        with thief_on(url, uid) as thief:
            body = {"model": "tiny", "prompt": PROMPT}
            assert httpx.post(f"{server.url}/api/generate", json=body, timeout=60, trust_env=False).status_code == 404

            async def ask() -> None:
                async for _ in neighbours.ask(other, "POST", "/api/generate", PROMPT.encode()):
                    pass

            with pytest.raises(neighbours.ConnectionBroken):
                asyncio.run(ask())
            received = thief.close()
    assert "X-Ollama-Challenge" in received
    assert secrets_in(received, other.key) == []


@pytest.mark.model
@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a program of another user")
def test_another_user_gets_neither_the_key_nor_an_answer(tmp_path: Path) -> None:
    """S29: a second user cannot read the runtime file, and no route of a background server answers without its key."""
    home = tmp_path / "home"
    home.mkdir()
    env = clean_env(home)
    with started([sys.executable, "-P", "-m", "ollama_nb.server", "--background"], home, env) as (process, log):
        file = home / ".ollama" / "nb" / "server.json"
        until_running(RunningServer("", process, home, log), file.exists)
        url = json.loads(file.read_bytes())["url"]
        code = (
            "import os, sys, urllib.request, urllib.error\n"
            "import encodings.idna\n"  # what is imported later could be unreadable for the other user
            f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
            "try: print(open(sys.argv[1]).read())\n"
            "except PermissionError: print('unreadable')\n"
            "try: print(urllib.request.urlopen(sys.argv[2] + '/api/tags').read())\n"
            "except urllib.error.HTTPError as error: print(error.code)\n"
        )
        command = [sys.executable, "-I", "-c", code, str(file), url]
        done = subprocess.run(command, env={**env, "no_proxy": "*"}, capture_output=True, text=True)
        assert done.stdout.split() == ["unreadable", "401"], done
