"""The background server: one per user, with a key, ends when idle."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from support.servers import RunningServer, clean_env, started, until

import ollama_nb

COMMAND = [sys.executable, "-P", "-m", "ollama_nb.server", "--background"]


def state_folder(home: Path) -> Path:
    return home / ".ollama" / "nb"


def described(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((state_folder(home) / "server.json").read_bytes())
    return found


def until_described(server: RunningServer) -> dict[str, Any]:
    until(server, (state_folder(server.home) / "server.json").exists)
    return described(server.home)


def test_one_server_behind_a_key(tmp_path: Path) -> None:
    env = clean_env(tmp_path)
    with started(COMMAND, tmp_path, env) as (process, log):
        info = until_described(RunningServer("", process, tmp_path, log))
        assert info.keys() == {"url", "key", "pid", "build"}
        assert (info["pid"], info["build"]) == (process.pid, ollama_nb.__version__)
        assert info["url"].startswith("http://127.0.0.1:") and len(info["key"]) > 30
        folder = state_folder(tmp_path)
        assert stat.S_IMODE((folder / "server.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert httpx.get(info["url"], timeout=120).status_code == 401
        let_in = httpx.get(info["url"], headers={"Authorization": f"Bearer {info['key']}"}, timeout=120)
        assert let_in.text == "Ollama is running"
        # A second one leaves the first alone.
        assert subprocess.run(COMMAND, env=env, timeout=120).returncode == 0
        assert described(tmp_path) == info and process.poll() is None
        assert info["key"] not in log.read_text()
    assert not (state_folder(tmp_path) / "server.json").exists()


def test_it_ends_when_idle(tmp_path: Path) -> None:
    with started([*COMMAND, "--idle", "0.5"], tmp_path, clean_env(tmp_path)) as (process, log):
        assert process.wait(60) == 0
        assert "idle for" in log.read_text()
    assert not (state_folder(tmp_path) / "server.json").exists()


def test_a_server_of_another_version_is_replaced(tmp_path: Path) -> None:
    old = [*COMMAND[:-3], "-c", "import sys, ollama_nb; ollama_nb.__version__ = '0.0.1'; "
           "from ollama_nb.server.__main__ import main; sys.exit(main())", "--background"]  # fmt: skip
    env = clean_env(tmp_path)
    with started(old, tmp_path, env) as (first, log):
        before = until_described(RunningServer("", first, tmp_path, log))
        assert before["build"] == "0.0.1"
        with started(COMMAND, tmp_path, env) as (second, second_log):
            server = RunningServer("", second, tmp_path, second_log)
            assert first.wait(60) == 0
            until(server, lambda: (state_folder(tmp_path) / "server.json").exists())
            assert described(tmp_path)["pid"] == second.pid


def test_files_of_a_killed_server_are_ignored(tmp_path: Path) -> None:
    folder = state_folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "server.json").write_text('{"url": "http://127.0.0.1:1", "key": "k", "pid": 1, "build": "0.0.1"}')
    (folder / "server.lock").touch()
    with started(COMMAND, tmp_path, clean_env(tmp_path)) as (process, log):
        server = RunningServer("", process, tmp_path, log)
        until(server, lambda: (folder / "server.json").exists() and described(tmp_path)["pid"] == process.pid)
