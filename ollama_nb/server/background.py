"""The background server: a private server that clients start if none runs. It ends when it is idle.

It listens on a random loopback port with a random key; both are in a runtime file that only its user can read. The
process that holds the lock file is the background server. One of another version is asked to end, and replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ollama_nb import __version__, runtime
from ollama_nb.errors import OllamaError
from ollama_nb.server.access import Keys
from ollama_nb.server.app import END_SECONDS, limit_shutdown, run
from ollama_nb.server.neighbours import Neighbours
from ollama_nb.server.standalone import addresses, bind
from ollama_nb.server.state import ServerState
from ollama_nb.settings import Host, Settings

IDLE_SECONDS = 600.0  # without requests and loaded models; then the server ends
LOCK = "server.lock"  # in the state folder
_REPLACE_SECONDS = END_SECONDS + 5  # for a server of another version to end
_POLL_SECONDS = 0.05  # between two tries to take the lock
_CHECKS = 20  # looks at the clock in an idle time
_log = logging.getLogger("ollama_nb.server")


async def serve_in_background(settings: Settings, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Serve until there has been no request and no loaded model for ``idle_seconds``.

    Return at once if a background server of this version runs already. Raises OllamaError if one of another version
    does not end.
    """
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if not await _take_lock(settings.home, stack):
            return
        file = runtime.background_file(settings.home)
        file.unlink(missing_ok=True)  # of a server that was killed
        key = secrets.token_urlsafe(32)
        sockets = bind(Host(host="127.0.0.1", port=0))
        stack.callback(file.unlink, missing_ok=True)
        runtime.write(file, f"http://{addresses(sockets)[0]}", key)

        async def end_when_idle(state: ServerState, stop: asyncio.Event) -> None:
            if settings.neighbours:
                state.neighbours = Neighbours(settings.home, runtime.jupyter_runtime_dir(os.environ))
            while True:
                idle = state.idle_seconds()
                if idle >= idle_seconds:
                    break
                await asyncio.sleep(min(idle_seconds - idle, idle_seconds / _CHECKS))
            _log.info("idle for %.0f seconds, shutting down", idle)
            file.unlink(missing_ok=True)  # first, so that no new client connects
            limit_shutdown()
            stop.set()

        await run(settings, sockets, keys=Keys(key), meanwhile=end_when_idle)


async def _take_lock(home: Path, stack: contextlib.ExitStack) -> bool:
    """Take the lock; return False if a server of this version holds it. Wait for one that is starting or ending."""
    lock = stack.enter_context(_opened(home / LOCK))
    asked: set[int] = set()
    deadline = time.monotonic() + _REPLACE_SECONDS
    while not _locked(lock):
        pid, build = _running(home)
        if build == __version__:
            return False
        if pid not in asked and _holds(pid, home / LOCK):
            _log.info("replacing the background server of version %s", build)
            asked.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise OllamaError(f"another background server (pid {pid}, version {build}) holds {LOCK} and does not end")
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _holds(pid: int, path: Path) -> bool:
    """Whether the process has the file open: its id could have been reused by another process."""
    try:
        return any(entry.readlink() == path.resolve() for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        yield file


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _running(home: Path) -> tuple[int, str]:
    """Process id and version in the runtime file; ``(0, "")`` while the server is starting."""
    found = runtime.read(runtime.background_file(home))
    return (found.pid, found.build) if found else (0, "")
