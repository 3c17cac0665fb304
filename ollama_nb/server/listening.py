"""A listening socket for a process that may run out of descriptors: who comes then is told so, and at once.

Without it such clients wait until they give up, and each turn of the event loop writes a traceback into the log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BODY = b'{"error":"too many connections are open, please try again","code":"busy"}'
FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\nRetry-After: 1\r\n" + (
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Listening(socket.socket):
    """Keeps one descriptor in reserve, to answer with when there is no other."""

    def __init__(self, bound: socket.socket) -> None:
        """Takes over a socket that listens."""
        super().__init__(bound.family, bound.type, bound.proto, bound.detach())
        self.setblocking(False)
        self._reserve = _reserve()

    def accept(self) -> tuple[socket.socket, Any]:
        """As ever; BlockingIOError, as if nobody had come, for a client that was turned away."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._turn_away()
            raise BlockingIOError(errno.EAGAIN, "no descriptor is left") from error

    def _turn_away(self) -> None:
        self._give_up_reserve()
        with contextlib.suppress(OSError), super().accept()[0] as client:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.recv(1 << 16)  # what is left unread would make the answer vanish
            client.send(FULL)
            client.shutdown(socket.SHUT_WR)
        self._reserve = _reserve()

    def _give_up_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
        self._reserve = -1

    def close(self) -> None:
        self._give_up_reserve()
        super().close()


def _reserve() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
