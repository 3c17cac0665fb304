"""Child processes of the server: how they are started, and the socket and the end of one child.

One lasting thread starts every child, because Linux sends a child's parent-death signal when the thread that started it
ends. Whatever fails while it starts a child is reported to the caller, and a child that was started by then is ended.
Every child is waited for, so none remains a zombie. However a child ends (exit, signal, closed socket, invalid
data on the socket), ``ChildLink.ended`` gives the cause within a second or two.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import queue
import re
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

import ollama_nb
from ollama_nb.errors import Busy, OllamaError, RunnerCrashed
from ollama_nb.runner import wire

OUTPUT_BYTES = 1 << 20  # of a child's printed output that are kept
SETTLE = 1.0  # seconds from the first sign of an end (exit or end of file) to the kill that forces the other one
PROBE_COMMAND = (sys.executable, "-I", "-S", "-c", "")  # a child that ends at once
PROBE_SECONDS = 10.0  # for which the result of a probe is used again
_NO_MEMORY = ("std::bad_alloc", "MemoryError")  # how native code and Python end when memory runs out
_EXHAUSTED = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of a start that pass when processes, descriptors or memory are freed."""

_ALLOWED = frozenset({"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT"})
_ALLOWED_PREFIXES = ("LC_", "CUDA", "HIP", "GGML", "OMP", "GOMP")
_FIXED = {
    "GGML_NO_BACKTRACE": "1",  # otherwise an abort forks a debugger and takes seconds to end
    "OPENBLAS_NUM_THREADS": "1",  # numpy's library starts its threads at import, and no child has work for them
    "PYTHONUTF8": "1",
}
_PACKAGE_ROOT = str(Path(ollama_nb.__file__).parent.parent)

_log = logging.getLogger("ollama_nb.runner")


def module_command(module: str) -> tuple[str, ...]:
    """The command line that runs a module of this package; ``-P`` keeps the working folder off its import path."""
    return (sys.executable, "-P", "-m", module)


def child_env(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: an allow-list, so that keys and tokens of the parent are not passed on."""
    env = {name: value for name, value in parent.items() if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)}
    env |= _FIXED
    if _PACKAGE_ROOT not in {*site.getsitepackages(), site.getusersitepackages()}:
        search = parent.get("PYTHONPATH", "")
        # A package that was found through PYTHONPATH may have its dependencies there too.
        env["PYTHONPATH"] = search if _PACKAGE_ROOT in search.split(os.pathsep) else _PACKAGE_ROOT
    return env


class OutputTail:
    """The last bytes that a child printed, at most ``limit``; written by one thread, read by others."""

    def __init__(self, limit: int = OUTPUT_BYTES) -> None:
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
        """The last line that is not blank, or an empty string."""
        return next((line.strip() for line in reversed(self.text().splitlines()) if line.strip()), "")


class Child:
    """A running child: its pid, this end of its socket, its output, and a future for its return code."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, output: IO[bytes]) -> None:
        """Takes over ``output``, the end of a pipe. Raises RuntimeError if its threads cannot be started."""
        self._process = process
        self.pid = process.pid
        self.program = str(process.args[-3])  # type: ignore[index]  # before FD and PARENT_PID
        self.channel = channel
        self.printed = OutputTail()
        self.exited: Future[int] = Future()
        self.exited.set_running_or_notify_cancel()  # a waiter cannot cancel it
        drain = _thread(self._drain, output, name=f"ollama-nb-output-{self.pid}")
        _thread(self._wait, drain, name=f"ollama-nb-wait-{self.pid}")

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _drain(self, output: IO[bytes]) -> None:
        with output:
            while chunk := output.read(1 << 16):
                self.printed.add(chunk)

    def _wait(self, drain: threading.Thread) -> None:
        code = self._process.wait()
        drain.join(0.2)  # its last lines explain its end; do not wait for another process that holds the pipe
        self.exited.set_result(code)


async def start(command: Sequence[str]) -> Child:
    """Start ``command FD PARENT_PID``; FD is the child's end of a Unix socket pair. Raises OSError."""
    started = _submit(lambda: _start(command))
    try:
        return await asyncio.wrap_future(started)
    except asyncio.CancelledError:
        started.add_done_callback(_kill_unwanted)  # runs in the spawner's thread: the loop may be closed by then
        raise


def start_blocking(command: Sequence[str]) -> Child:
    """``start`` for threads without an event loop. Raises OSError."""
    return _submit(lambda: _start(command)).result()


def start_error(what: str, error: OSError, otherwise: type[OllamaError] = RunnerCrashed) -> OllamaError:
    """The error for a child that could not be started: Busy if the machine or a limit has no room for it now."""
    kind = Busy if error.errno in _EXHAUSTED else otherwise
    return kind(f"{what} cannot be started: {error.strerror or error}")


_probe: asyncio.Task[None] | None = None
_probed = -PROBE_SECONDS  # monotonic seconds of the last start that succeeded


async def check_start() -> None:
    """Start a child that ends at once, unless that succeeded within ``PROBE_SECONDS``. Raises OllamaError."""
    global _probe
    if time.monotonic() - _probed < PROBE_SECONDS:
        return
    if _probe is None or _probe.done() or _probe.get_loop() is not asyncio.get_running_loop():
        _probe = asyncio.ensure_future(_start_probe())
        _probe.add_done_callback(lambda task: task.cancelled() or task.exception())  # it may have no waiter left
    await asyncio.shield(_probe)  # the callers share one probe


async def _start_probe() -> None:
    global _probed
    try:
        child = await start(PROBE_COMMAND)
    except OSError as error:
        raise start_error("a child process", error) from error
    child.channel.close()
    await asyncio.wrap_future(child.exited)
    _probed = time.monotonic()


def _kill_unwanted(started: Future[Child]) -> None:
    if started.exception() is None:
        started.result().channel.close()
        started.result().kill()


def _start(command: Sequence[str]) -> Child:
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        with theirs:
            read_end, write_end = os.pipe()
            output = undo.enter_context(os.fdopen(read_end, "rb", buffering=0))
            try:
                process = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    env=child_env(os.environ),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C in a terminal reaches the server only, which ends its children
                )
            finally:
                os.close(write_end)
        undo.callback(_end_unwatched, process)
        ours.setblocking(False)
        child = Child(process, ours, output)
        undo.pop_all()
    return child


def _end_unwatched(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _thread(target: Callable[..., None], *args: object, name: str) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread


class _Spawner:
    """The one lasting thread. It is a daemon thread: when the process ends, the children end too."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Child], Future[Child]]] = queue.SimpleQueue()
        self._thread = _thread(self._run, name="ollama-nb-spawner")

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Callable[[], Child]) -> Future[Child]:
        future: Future[Child] = Future()
        future.set_running_or_notify_cancel()
        self._jobs.put((job, future))
        return future

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                child = job()
            except OSError as error:
                future.set_exception(error)
            except BaseException as error:  # such as "can't start new thread": the children need this thread
                passes = isinstance(error, RuntimeError | MemoryError)
                future.set_exception(OSError(errno.EAGAIN if passes else errno.EIO, f"{error or type(error).__name__}"))
            else:
                future.set_result(child)
            del job, future  # a future keeps its child, and so its socket, until the next start


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _submit(job: Callable[[], Child]) -> Future[Child]:
    """Run ``job`` in the spawner's thread. Raises OSError if that thread cannot be started."""
    global _spawner
    with _spawner_lock:
        if _spawner is None or not _spawner.alive:
            try:
                _spawner = _Spawner()
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, str(error)) from error
        return _spawner.submit(job)


def _forget_spawner() -> None:
    """A forked process has no spawner thread; it starts its own when it needs one."""
    global _spawner, _spawner_lock
    _spawner, _spawner_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_spawner)


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """Why a child ended.

    ``killed``: by a SIGKILL from outside (an operator, or the kernel out of memory). ``number``: the signal that ended
    it, 0 for an exit. ``no_memory``: it ended because memory ran out, as far as that is known.
    """

    cause: str
    killed: bool = False
    number: int = 0
    no_memory: bool = False


class ChildLink(asyncio.Protocol):
    """The event loop's connection to a child: sends messages and calls ``received`` for each reply, until ``ended``."""

    def __init__(self, child: Child, kind: Any, received: Callable[[Any], None]) -> None:
        self.child = child
        self.ended: asyncio.Future[ProcessEnd] = asyncio.get_running_loop().create_future()
        self._reader = wire.FrameReader(kind)
        self._received = received
        self._transport: asyncio.Transport
        self._closed = asyncio.Event()
        self._exit = asyncio.wrap_future(child.exited)
        self._closing = False
        self._blame = ""
        self._reaper = asyncio.ensure_future(self._reap())  # the loop holds only weak references to tasks

    @classmethod
    async def open(cls, command: Sequence[str], kind: Any, received: Callable[[Any], None]) -> ChildLink:
        """Start ``command``; ``received`` is called with every message of union ``kind``. Raises OSError."""
        child = await start(command)
        link = cls(child, kind, received)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=child.channel)
        except BaseException:
            child.channel.close()
            child.kill()
            link._closed.set()
            raise
        return link

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message. It is dropped when the child is gone; ``ended`` reports that."""
        self.send_bytes(wire.frame(message))

    def send_bytes(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def kill(self, blame: str) -> None:
        """End the child now, with ``blame`` as the cause in ``ended``."""
        self._blame = self._blame or blame
        self.child.kill()

    async def close(self, grace: float) -> None:
        """End the child: end of file and SIGTERM, then SIGKILL after ``grace`` seconds. Returns when it is reaped."""
        self._closing = True
        self._transport.abort()
        self.child.terminate()
        await asyncio.wait([self.ended], timeout=grace)
        self.child.kill()
        await self.ended

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._blame:
            return
        try:
            for message in self._reader.feed(data):
                self._received(message)
        except RunnerCrashed as error:
            self.kill(error.message)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:  # a write failed because the child is gone; its last messages can still be read
            with contextlib.suppress(OSError):
                while data := self.child.channel.recv(1 << 18):
                    self.data_received(data)
        self._closed.set()

    async def _reap(self) -> None:
        closed = asyncio.ensure_future(self._closed.wait())
        signs: list[asyncio.Future[Any]] = [self._exit, closed]
        await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
        # If the child exited, read its remaining messages. If it closed its socket, wait for the exit: the return code
        # shows the cause.
        await asyncio.wait(signs, timeout=0 if self._closing else SETTLE)
        hung_up = not self._exit.done() and not self._closing
        if hung_up:
            self.child.kill()
        if self._exit.done() and not closed.done():
            self._transport.abort()
        code = await self._exit
        await closed
        if hung_up and code == -signal.SIGKILL:  # otherwise it was already ending, on a busy machine
            self._blame = self._blame or "it closed its connection"
        cause = self._blame or describe_exit(code, self.child.printed.last_line())
        printed = self.child.printed.text()[-4096:]
        if not self._closing:
            crash = {"process": self.child.program, "pid": self.child.pid, "cause": cause, "output": printed}
            _log.warning("child %d ended: %s\n%s", self.child.pid, cause, printed, extra={"crash": crash})
        killed = code == -signal.SIGKILL and not self._blame and not self._closing
        no_memory = killed or any(words in printed for words in _NO_MEMORY)
        self.ended.set_result(ProcessEnd(cause, killed, max(0, -code), no_memory))


def describe_exit(code: int, last_line: str) -> str:
    """Why a process ended, from its return code and the last line that it printed."""
    if code >= 0:
        return f"exited with status {code}" + (f": {last_line}" if last_line else "")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGILL":
        return "died by SIGILL: llama-cpp-python was built for another processor, reinstall it on this machine"
    if name == "SIGKILL":
        return "killed by SIGKILL, perhaps because memory ran out"
    return f"died by {name}" + (f": {_BUILD_PATH.sub(_place_last, last_line)}" if last_line else "")


_BUILD_PATH = re.compile(r"^\S*[/\\](?P<place>[^/\\\s:]+:\d+): (?P<reason>.+)")
"""llama.cpp begins a fatal message with the path of its source file on the machine that built it."""


def _place_last(found: re.Match[str]) -> str:
    return f"{found['reason']} ({found['place']})"
