"""One child process and its socket, seen from the event loop.

Rule: however a child ends (exit, signal, closed socket, nonsense on the wire), ``ended`` says why
within a second or two, and the process is reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ollama_nb.errors import RunnerCrashed
from ollama_nb.runner import spawn, wire

SETTLE = 1.0
"""Seconds between the first sign of an end (exit or end of file) and the kill that makes the other one true."""

_log = logging.getLogger("ollama_nb.runner")


@dataclass(frozen=True, slots=True)
class End:
    """Why a child ended. ``killed``: by a SIGKILL that was not ours (an operator, or the kernel short of memory)."""

    cause: str
    killed: bool = False


class Link(asyncio.Protocol):
    """Sends messages to a child and hands on what it says, until ``ended``."""

    def __init__(self, child: spawn.Child, kind: Any, received: Callable[[Any], None]) -> None:
        self.child = child
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._reader = wire.FrameReader(kind)
        self._received = received
        self._transport: asyncio.Transport
        self._closed = asyncio.Event()
        self._exit = asyncio.wrap_future(child.exited)
        self._closing = False
        self._blame = ""
        self._reaper = asyncio.ensure_future(self._reap())  # kept: the loop itself only knows tasks weakly

    @classmethod
    async def open(cls, command: Sequence[str], kind: Any, received: Callable[[Any], None]) -> Link:
        """Start ``command``; ``received`` is called with every message of union ``kind``. Raises OSError."""
        child = await spawn.start(command)
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
        """Queue a message. A child that is gone swallows it: ``ended`` tells."""
        self.send_bytes(wire.frame(message))

    def send_bytes(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def kill(self, blame: str) -> None:
        """End the child now; ``blame`` becomes the text of ``ended``."""
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
        if error is not None:  # a write failed because the child is gone; what it said before that is still there
            with contextlib.suppress(OSError):
                while data := self.child.channel.recv(1 << 18):
                    self.data_received(data)
        self._closed.set()

    async def _reap(self) -> None:
        closed = asyncio.ensure_future(self._closed.wait())
        signs: list[asyncio.Future[Any]] = [self._exit, closed]
        await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
        # Of a child that ended by itself, everything that it said is still read; of one that closed its socket, the
        # exit is awaited: it names the cause.
        await asyncio.wait(signs, timeout=0 if self._closing else SETTLE)
        hung_up = not self._exit.done() and not self._closing
        if hung_up:
            self.child.kill()
        if self._exit.done() and not closed.done():
            self._transport.abort()
        code = await self._exit
        await closed
        if hung_up and code == -signal.SIGKILL:  # else it was ending by itself, on a machine that let it wait
            self._blame = self._blame or "it closed its connection"
        cause = self._blame or explain(code, self.child.printed.last_line())
        if not self._closing:
            _log.warning("child %d ended: %s\n%s", self.child.pid, cause, self.child.printed.text()[-4096:])
        self.ended.set_result(End(cause, killed=code == -signal.SIGKILL and not self._blame and not self._closing))


def explain(code: int, last_line: str) -> str:
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
"""How llama.cpp begins its last words: with the path of the source file on the machine that built it."""


def _place_last(found: re.Match[str]) -> str:
    return f"{found['reason']} ({found['place']})"
