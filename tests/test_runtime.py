from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ollama_nb import __version__, runtime


def write(path: Path, mode: int = 0o600, **parts: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"url": "", "key": "k", "pid": 1, "build": "x", **parts}))
    path.chmod(mode)


def test_write_and_read(tmp_path: Path) -> None:
    file = runtime.serve_file(tmp_path, 11434)
    runtime.write(file, "http://127.0.0.1:11434", "key")
    assert file.stat().st_mode & 0o777 == 0o600
    assert runtime.read(file) == runtime.RuntimeInfo("http://127.0.0.1:11434", "key", os.getpid(), __version__)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"url": "x", "key": "k", "pid": "p"}'])
def test_an_incomplete_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    (tmp_path / "server.json").chmod(0o600)
    assert runtime.read(tmp_path / "server.json") is None
    assert runtime.read(tmp_path / "missing.json") is None


def test_a_file_of_another_user_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = runtime.background_file(tmp_path)
    write(file)
    assert runtime.read(file) is not None
    file.chmod(0o640)  # other users could read the key
    assert runtime.read(file) is None
    file.chmod(0o600)
    monkeypatch.setattr(runtime.os, "getuid", lambda: 12345)
    assert runtime.read(file) is None


def test_running_servers_are_other_living_processes_on_this_machine(tmp_path: Path) -> None:
    home, jupyter = tmp_path / "home", tmp_path / "runtime"
    assert runtime.running_servers(home, jupyter) == []
    url, alive = "http://127.0.0.1:11434", os.getppid()
    write(home / "server.json", url=url, pid=alive)
    write(home / "serve-1.json", url=url, pid=alive)
    write(jupyter / "ollama-nb-1.json", url=f"{url}/user/x/ollama", pid=alive)
    found = runtime.running_servers(home, jupyter)
    assert [info.url for info in found] == [url, url, f"{url}/user/x/ollama"]
    write(home / "server.json", 0o640, url=url, pid=alive)
    write(home / "serve-1.json", url=url, pid=os.getpid())
    for wrong in ("http://10.0.0.1:80", "https://127.0.0.1:80", "http://evil.example", "http://127.0.0.1", 3, ""):
        write(jupyter / "ollama-nb-1.json", url=wrong, pid=alive)
        assert runtime.running_servers(home, jupyter) == []
    (jupyter / "ollama-nb-1.json").write_text("{")
    (jupyter / "ollama-nb-2.json").symlink_to(home / "server.json")
    (jupyter / "ollama-nb-3.json").mkdir()
    assert runtime.running_servers(home, jupyter) == []
    for pid in (ended_process(), 0, -1, 1 << 70):
        write(home / "server.json", url=url, pid=pid)
        assert runtime.running_servers(home, jupyter) == []
    write(home / "server.json", url=url, pid=alive)
    assert len(runtime.running_servers(home, jupyter)) == 1


def ended_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_proof_is_for_one_challenge_and_one_key() -> None:
    challenge = runtime.new_challenge()
    proof = runtime.prove(runtime.key_hash("key"), challenge)
    assert runtime.is_proof(proof, "key", challenge)
    assert not runtime.is_proof(proof, "key", runtime.new_challenge())
    assert not runtime.is_proof(proof, "other", challenge)
    assert not runtime.is_proof("", "key", challenge) and not runtime.is_proof("é", "key", challenge)


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({}, "~/.local/share/jupyter/runtime"),
        ({"XDG_DATA_HOME": "/x"}, "/x/jupyter/runtime"),
        ({"JUPYTER_DATA_DIR": "/d"}, "/d/runtime"),
        ({"JUPYTER_DATA_DIR": "/d", "JUPYTER_RUNTIME_DIR": "/r"}, "/r"),
        ({"JUPYTER_PLATFORM_DIRS": "0"}, "~/.local/share/jupyter/runtime"),
        ({"JUPYTER_PLATFORM_DIRS": "1", "XDG_DATA_HOME": "/x"}, "/x/jupyter/runtime"),
    ],
)
def test_jupyters_runtime_folder(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], folder: str) -> None:
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_PLATFORM_DIRS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    paths = pytest.importorskip("jupyter_core.paths")
    found = runtime.jupyter_runtime_dir(os.environ)
    assert str(found) == paths.jupyter_runtime_dir()
    if sys.platform == "linux":
        assert found == Path(folder).expanduser()
