"""Real servers in processes of their own: free ports, an empty home, no process left at the end.

``standalone`` starts ``python -m ollama_nb.server``, ``jupyter`` starts a Jupyter server with the extension. Both wait
until the server answers, and end it with all its descendants when the block ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

START_SECONDS = 120.0
END_SECONDS = 60.0
_DROPPED = ("OLLAMA", "JPY_", "JUPYTER", "IPYTHON")


@dataclass
class RunningServer:
    """A running server. ``url`` is the base of the Ollama API; ``headers`` authenticate a client."""

    url: str
    process: subprocess.Popen[bytes]
    home: Path
    log: Path
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def models(self) -> Path:
        return self.home / ".ollama" / "models"

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_env(home: Path, **more: str) -> dict[str, str]:
    """This process's environment with an empty home and without Ollama's and Jupyter's variables."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    jupyter = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR",
               "JUPYTER_DATA_DIR", "IPYTHONDIR")}  # fmt: skip
    env["OLLAMA_NB_EXTRA_MODELS"] = ""
    return {**env, "HOME": str(home), "NO_PROXY": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1", **jupyter, **more}


@contextlib.contextmanager
def standalone(
    home: Path, *, env: Mapping[str, str] | None = None, args: tuple[str, ...] = (), host: str = ""
) -> Iterator[RunningServer]:
    """The standalone server on a free port, or on ``host`` (as ``OLLAMA_HOST`` is written)."""
    address = host or f"127.0.0.1:{free_port()}"
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "ollama_nb.server", "--host", address, *args]
    with started(command, home, clean_env(home, **(env or {}))) as (process, log):
        server = RunningServer(f"http://{address}", process, home, log)
        until_answers(server, f"{server.url}/")
        yield server


@contextlib.contextmanager
def jupyter(
    home: Path,
    *,
    args: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    token: str | None = "test-token",
    base_url: str = "/",
    scheme: str = "http",
) -> Iterator[RunningServer]:
    """A Jupyter server with the extension, below ``base_url``; ``token`` None leaves authentication to ``args``."""
    port = free_port()
    (home / "notebooks").mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-P", "-m", "jupyter_server", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={home / 'notebooks'}", f"--ServerApp.base_url={base_url}",
        "--ServerApp.jpserver_extensions={'ollama_nb_ext': True}", *args,
    ]  # fmt: skip
    if token is not None:
        command.append(f"--IdentityProvider.token={token}")
    with started(command, home, clean_env(home, **(env or {}))) as (process, log):
        root = f"{scheme}://127.0.0.1:{port}{base_url.rstrip('/')}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        server = RunningServer(f"{root}/ollama", process, home, log, headers)
        until_answers(server, f"{root}/api")
        until(server, lambda: bool(list((home / "jupyter_runtime_dir").glob("ollama-nb-*.json"))))
        yield server


def runtime_info(server: RunningServer) -> dict[str, str]:
    """The runtime file that the extension writes for clients of the same user."""
    (file,) = (server.home / "jupyter_runtime_dir").glob("ollama-nb-*.json")
    found: dict[str, str] = json.loads(file.read_bytes())
    return found


@contextlib.contextmanager
def started(command: list[str], home: Path, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a process in its own session with its output in a log; end it and its descendants afterwards."""
    log = home / f"server-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=home, start_new_session=True
        )
    try:
        yield process, log
    finally:
        below = descendants(process.pid)
        end(process)
        left = [pid for pid in below if not _ended(pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"left behind: {left}\n{log.read_text('utf-8', 'replace')}"


def end(process: subprocess.Popen[bytes]) -> int:
    """Terminate the process, and kill it if it does not end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def until_answers(server: RunningServer, url: str) -> None:
    def answers() -> bool:
        try:
            urllib.request.urlopen(url, timeout=5, context=_anyone() if url.startswith("https") else None).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    until(server, answers)


def until(server: RunningServer, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Wait for a condition; fail if the server ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert server.process.poll() is None, f"the server ended:\n{server.output()}"
        assert time.monotonic() < deadline, f"nothing within {seconds} s:\n{server.output()}"
        time.sleep(0.05)


def descendants(pid: int) -> set[int]:
    """All descendants of ``pid``, in whatever session."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    grown = {pid}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown} - found
        found |= grown
    return found


def _ended(pid: int, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def _anyone() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class RestClient:
    """Calls ``server`` over plain HTTP; a method fails the test if the reply is not of the kind it expects."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.models: Path = server.models
        self.pid = server.pid

    def request(self, method: str, path: str, body: bytes) -> tuple[int, list[dict[str, Any]]]:
        """Status and lines."""
        base = urlsplit(self._server.url)
        connection = http.client.HTTPConnection(base.netloc, timeout=150)
        try:
            connection.request(
                method, base.path + path, body, {"Content-Type": "application/json", **self._server.headers}
            )
            reply = connection.getresponse()
            return reply.status, [json.loads(line) for line in reply.read().splitlines() if line.strip()]
        finally:
            connection.close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The last line of a successful reply."""
        status, lines = self.request("POST", path, json.dumps(body).encode())
        assert status == 200, lines
        return lines[-1]

    def add_blob(self, data: bytes) -> str:
        """Upload a blob and return its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        status, _ = self.request("POST", f"/api/blobs/{digest}", data)
        assert status in (200, 201)
        return digest

    def create(self, model: str, **fields: Any) -> str:
        """Create a model and return the last status, or the error."""
        line = self.post("/api/create", {"model": model, **fields})
        return str(line.get("status", line))

    def generate(self, model: str, prompt: str, **options: Any) -> str:
        """The reply to a raw prompt, greedy by default."""
        return str(self.post("/api/generate", _generation(model, prompt, options))["response"])

    def fail(self, model: str, prompt: str, **options: Any) -> tuple[int, str]:
        """Status and text of the error for a prompt."""
        status, lines = self.request("POST", "/api/generate", json.dumps(_generation(model, prompt, options)).encode())
        assert "error" in lines[-1], lines
        return status, str(lines[-1]["error"])


def _generation(model: str, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    chosen = {"temperature": 0, "num_predict": 60, "num_thread": 1, **options}
    return {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": chosen}


ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"


@contextlib.contextmanager
def notebook_env(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of kernels, while a server below ``folder`` runs.

    The server keeps this user's home, where pip has its configuration and its cache.
    """
    own = {
        "HOME": str(Path.home()),
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_NB_HOME": str(folder / "state"),
    }
    with standalone(folder / "server", env=own) as server:
        yield clean_env(folder, OLLAMA_HOST=server.url, OLLAMA_NB_STREAM="0")


CLIENT_BOOKS = frozenset({"09_openai_anthropic"})
"""Notebooks that need the extra ``clients``."""


def check_outputs(books: Iterable[Path], folder: Path) -> None:
    """Run notebooks on a real server and compare their outputs with the saved ones."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=600"]
    command += ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg"), "-p", "no:cacheprovider"]
    command += ["-c", str(folder / "pytest.ini"), *map(str, books)]
    (folder / "pytest.ini").write_text("[pytest]\n")
    with notebook_env(folder) as env:
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d+ passed\b", done.stdout), done.stdout
