"""Start this user's background server, once however many clients ask for it at the same moment."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ollama_nb import __version__
from ollama_nb.client.client import Client
from ollama_nb.errors import ConnectError
from ollama_nb.runtime import RuntimeInfo, background_file, read
from ollama_nb.settings import Settings

if sys.platform != "win32":
    import fcntl

START_SECONDS = 60.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 10


def answering(found: RuntimeInfo) -> Client | None:
    """A client of the server that a runtime file names, if it is alive and accepts the key."""
    client = Client(found.url, found.key)
    return client if client.answers() else None


def find(settings: Settings) -> Client | None:
    """The background server that runs already; one of another build does not count, starting ours replaces it."""
    found = read(background_file(settings.home))
    return answering(found) if found and found.build == __version__ else None


def start(settings: Settings) -> Client:
    """Start a background server, unless another client just did. Raises ConnectError with the end of its log."""
    log = settings.home / "logs" / "server.log"
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        log.parent.mkdir(mode=0o700, exist_ok=True)
        with _alone(settings.home / "start.lock"):
            return find(settings) or _wait(_spawn(settings, log), settings, log)
    except OSError as error:
        raise ConnectError(f"cannot start a background server in {settings.home}: {error.strerror or error}") from None


def _spawn(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    """A process of its own: own session, no terminal, our folder as its folder, its words in the log."""
    env = {name: value for name, value in os.environ.items() if name not in {"OLLAMA_HOST", "OLLAMA_API_KEY"}}
    env["OLLAMA_NB_HOME"] = str(settings.home.absolute())
    # -P: a module that lies in the working folder must not become part of the server.
    command = [sys.executable, "-P", "-m", "ollama_nb.server", "--background"]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd=settings.home,
            env=env,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    # A kernel may live longer than the server that it started: somebody must collect it.
    threading.Thread(target=process.wait, daemon=True, name="ollama-nb-reaper").start()
    return process


def _wait(process: subprocess.Popen[bytes], settings: Settings, log: Path) -> Client:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        failed = process.returncode  # 0: it found another one that is just starting
        if client := find(settings):
            return client
        if failed:
            raise ConnectError(f"the background server did not start. The end of {log}:\n{_tail(log)}")
        time.sleep(POLL_SECONDS)
    raise ConnectError(f"the background server did not start in {START_SECONDS:.0f} s. Its log: {log}")


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:])
    except OSError:
        return ""


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock between processes. (Without flock, the server's own lock still lets only one server live.)"""
    with path.open("ab") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
