"""Start child processes: a socket pair, a scrubbed environment, a bounded memory of what they printed.

Rule: every child is started by one lasting thread, because Linux sends a child's parent-death signal when the *thread*
that started it ends. Every child is waited for, so none stays a zombie.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import site
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import ollama_nb

RING_BYTES = 1 << 20
_ALLOWED = frozenset({"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT"})
_ALLOWED_PREFIXES = ("LC_", "CUDA", "HIP", "GGML", "OMP", "GOMP")
_FIXED = {
    "GGML_NO_BACKTRACE": "1",  # else an abort forks a debugger and takes seconds to die
    "PYTHONUTF8": "1",
}
_PACKAGE_ROOT = str(Path(ollama_nb.__file__).parent.parent)


def module_command(module: str) -> tuple[str, ...]:
    """The command line of one of our modules; ``-P`` keeps the working folder out of its import path."""
    return (sys.executable, "-P", "-m", module)


def child_env(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: an allow-list, never keys or tokens that the parent holds."""
    env = {name: value for name, value in parent.items() if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)}
    env |= _FIXED
    if _PACKAGE_ROOT not in {*site.getsitepackages(), site.getusersitepackages()}:
        search = parent.get("PYTHONPATH", "")
        # Found through PYTHONPATH: what the package needs may lie there too. Otherwise its own folder is enough.
        env["PYTHONPATH"] = search if _PACKAGE_ROOT in search.split(os.pathsep) else _PACKAGE_ROOT
    return env


class Ring:
    """The last bytes that a child printed, at most ``limit``; written by one thread, read by others."""

    def __init__(self, limit: int = RING_BYTES) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._lock = threading.Lock()
        self.last_activity = time.monotonic()

    def add(self, chunk: bytes) -> None:
        with self._lock:
            self._chunks.append(chunk)
            self._size += len(chunk)
            while self._size - len(self._chunks[0]) >= self._limit:
                self._size -= len(self._chunks.popleft())
        self.last_activity = time.monotonic()

    def text(self) -> str:
        with self._lock:
            data = b"".join(self._chunks)
        return data[-self._limit :].decode("utf-8", "replace")

    def last_line(self) -> str:
        """The last line that says something, or an empty text."""
        return next((line.strip() for line in reversed(self.text().splitlines()) if line.strip()), "")


class Child:
    """A running child: its pid, our end of its socket, what it printed, and when it exits, its return code."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, output: int) -> None:
        self._process = process
        self.pid = process.pid
        self.channel = channel
        self.printed = Ring()
        self.exited: Future[int] = Future()
        self.exited.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
        drain = _thread(self._drain, output, name=f"ollama-nb-output-{self.pid}")
        _thread(self._wait, drain, name=f"ollama-nb-wait-{self.pid}")

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _drain(self, output: int) -> None:
        with open(output, "rb", buffering=0) as pipe:
            while chunk := pipe.read(1 << 16):
                self.printed.add(chunk)

    def _wait(self, drain: threading.Thread) -> None:
        code = self._process.wait()
        drain.join(0.2)  # its last lines explain its death; whoever else holds the pipe is not waited for
        self.exited.set_result(code)


async def start(command: Sequence[str]) -> Child:
    """Start ``command FD PARENT_PID``; FD is its end of a Unix socket pair. Raises OSError when it cannot start."""
    started = _submit(lambda: _start(command))
    try:
        return await asyncio.wrap_future(started)
    except asyncio.CancelledError:
        started.add_done_callback(_kill_unwanted)  # in the spawner's thread: the loop may have ended by then
        raise


def start_blocking(command: Sequence[str]) -> Child:
    """``start`` for threads without an event loop. Raises OSError."""
    return _submit(lambda: _start(command)).result()


def _kill_unwanted(started: Future[Child]) -> None:
    if started.exception() is None:
        started.result().channel.close()
        started.result().kill()


def _start(command: Sequence[str]) -> Child:
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as undo, theirs:
        undo.callback(ours.close)
        read_end, write_end = os.pipe()
        undo.callback(os.close, read_end)
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=child_env(os.environ),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in a terminal is for the server, which then ends its children
            )
        finally:
            os.close(write_end)
        undo.pop_all()
    ours.setblocking(False)
    return Child(process, ours, read_end)


def _thread(target: Callable[..., None], *args: object, name: str) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread


class _Spawner:
    """The one lasting thread. It is a daemon: when the process ends, so do the children."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Child], Future[Child]]] = queue.SimpleQueue()
        _thread(self._run, name="ollama-nb-spawner")

    def submit(self, job: Callable[[], Child]) -> Future[Child]:
        future: Future[Child] = Future()
        future.set_running_or_notify_cancel()
        self._jobs.put((job, future))
        return future

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except OSError as error:
                future.set_exception(error)


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _submit(job: Callable[[], Child]) -> Future[Child]:
    global _spawner
    with _spawner_lock:
        if _spawner is None:
            _spawner = _Spawner()
    return _spawner.submit(job)


def _forget_spawner() -> None:
    """A forked process has no spawner thread; it makes its own when it needs one."""
    global _spawner, _spawner_lock
    _spawner, _spawner_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_spawner)
