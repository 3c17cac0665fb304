"""Secrets do not appear in logs, errors, metrics or files, even when requests fail and the log level is debug."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.chaos_registry import chaos_registry, status
from support.servers import RunningServer, clean_env, descendants, standalone

pytestmark = pytest.mark.model
PROXY, LOGIN, WRONG, PROMPT, QUERY = (
    f"canary-{name}-4f81c2" for name in ("proxy", "login", "wrong", "prompt", "query")
)
SPEAK = {"model": "sprout", "raw": True, "options": {"num_predict": 400, "num_ctx": 512}}


def new_key(home: Path) -> str:
    program = [sys.executable, "-P", "-m", "ollama_nb.cli.main", "keys", "add", "anna", "--scope", "admin"]
    made = subprocess.run(program, env=clean_env(home), capture_output=True, text=True, check=True)
    return next(line.strip() for line in made.stdout.splitlines() if "onb_" in line)


def trouble(server: RunningServer, key: str, registry: str) -> list[str]:
    """The replies of a server to requests that succeed, fail, and are refused."""
    said: list[str] = []
    with httpx.Client(base_url=server.url, timeout=120, headers={"Authorization": f"Bearer {key}"}) as http:

        def ask(method: str, path: str, body: Any = None, **fields: Any) -> None:
            reply = http.request(method, path, json=body, **fields)
            said.append(f"{reply.status_code} {dict(reply.headers)} {reply.text}")

        ask("POST", "/api/pull", {"model": "registry.example.invalid/a/m"})
        ask("POST", "/api/pull", {"model": f"http://{registry}/a/m", "insecure": True})
        ask("POST", "/api/pull", {"model": f"https://anna:{LOGIN}@{registry}/a/m"})
        ask("GET", f"/api/tags?token={QUERY}&key={QUERY}")
        ask("GET", "/api/tags", headers={"Authorization": f"Bearer {WRONG}"})
        ask("POST", "/api/generate", {**SPEAK, "prompt": ["not a text"]})
        with http.stream("POST", "/api/generate", json={**SPEAK, "prompt": PROMPT}) as reply:
            pieces = reply.iter_raw()
            next(pieces)
            for pid in descendants(server.pid):
                os.kill(pid, signal.SIGKILL)
            said.append(b"".join(pieces).decode())
        ask("GET", "/metrics")
        ask("GET", "/api/ps")
        ask("GET", "/api/queue")
    return said


def test_nothing_secret_anywhere(tmp_path: Path) -> None:
    """S25: no secret of the environment, a proxy or a key appears in outputs, logs and errors."""
    key = new_key(tmp_path)
    proxy = f"http://anna:{PROXY}@127.0.0.1:9"
    env = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "OLLAMA_DEBUG": "1", "NO_PROXY": "127.0.0.1"}
    with chaos_registry() as registry:
        registry.always = status(401, WWW_Authenticate='Basic realm="r"')
        login = base64.b64encode(f"anna:{LOGIN}".encode()).decode()
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
        with standalone(tmp_path, env=env) as server:
            said = trouble(server, key, registry.host)
            said.append(server.output())
        said.append(server.output())
    ours = [path for path in (tmp_path / ".ollama").rglob("*") if path.is_file() and path.name != "serve.json"]
    said += [path.read_bytes().decode("latin-1") for path in ours if path.stat().st_size < 1 << 20]
    everything = "\n".join(said)
    secrets = {"proxy": PROXY, "login": LOGIN, "its code": login, "wrong": WRONG, "query": QUERY, "prompt": PROMPT}
    assert [name for name, secret in {**secrets, "key": key}.items() if secret in everything] == []
    assert "401" in everything and "registry.example.invalid" in everything, "there was something to say"
