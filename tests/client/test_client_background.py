"""The background server: real processes that start once, are found, and end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import of_session, until

from ollama_nb.client.connect import connect, start_background
from ollama_nb.client.files import file_digest
from ollama_nb.errors import ConnectError
from ollama_nb.settings import Settings

SECONDS = 60


@pytest.fixture
def state(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Our folder; at the end, the server that was started there is gone with all that it started."""
    monkeypatch.setattr("ollama_nb.client.connect.DEFAULT_PORT", 1)
    folder = home / ".ollama" / "nb"
    yield folder
    with contextlib.suppress(OSError):
        pid = json.loads((folder / "server.json").read_text("utf-8"))["pid"]
        os.kill(pid, signal.SIGTERM)
        until(lambda: not of_session(pid))


@pytest.mark.model
def test_two_clients_at_once_start_one_server(state: Path) -> None:
    code = (
        "import ollama_nb.client.connect as c; c.DEFAULT_PORT = 1; "
        "client = c.connect(); print(client.url, client.version())"
    )
    clients = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [client.communicate(timeout=SECONDS) for client in clients]
    assert [error for _, error in said] == ["", ""]
    assert said[0][0] == said[1][0] != ""
    assert connect().url == said[0][0].split()[0]
    assert (state / "server.json").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700


@pytest.mark.model
def test_a_server_that_was_killed_is_replaced(state: Path) -> None:
    first = connect()
    pid = json.loads((state / "server.json").read_text("utf-8"))["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not of_session(pid))
    second = connect()
    assert second.url != first.url or second.key != first.key
    assert second.list() == {"models": []}


def test_a_server_that_cannot_start_reports_the_reason(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = state.parent / "broken" / "ollama_nb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise SystemExit('坏了: no such thing')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    with pytest.raises(ConnectError, match=r"did not start\. The end of .*server\.log:\n坏了: no such thing"):
        start_background(Settings.from_env())


def test_a_home_that_cannot_be_written(home: Path) -> None:
    (home / ".ollama").write_text("a file")
    with pytest.raises(ConnectError, match="cannot start a background server in"):
        start_background(Settings.from_env())


@pytest.mark.model
def test_relative_folders_are_the_same_for_client_and_server(
    home: Path, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background server has another working directory than its clients, which change theirs."""
    monkeypatch.setattr("ollama_nb.client.connect.DEFAULT_PORT", 1)
    for name in ("work", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name, folder in (("MODELS", "models"), ("NB_HOME", "state"), ("NB_EXTRA_MODELS", "extra")):
        monkeypatch.setenv(f"OLLAMA_{name}", folder)
    client = connect()
    pid = json.loads((tmp_path / "work" / "state" / "server.json").read_text("utf-8"))["pid"]
    try:
        file = models / "stories260K-q8_0.gguf"
        with file.open("rb") as opened:
            client.upload_blob(file_digest(file), opened, file.stat().st_size)
        list(client.create("tiny", files={file.name: file_digest(file)}))
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert [model["name"] for model in connect(start=False).list()["models"]] == ["tiny:latest"]
        assert Settings.from_env().models == tmp_path / "work" / "models"
        assert (tmp_path / "work" / "models" / "manifests").is_dir()
        assert sorted(path.name for path in tmp_path.glob("*/*")) == ["models", "state"]
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not of_session(pid))
