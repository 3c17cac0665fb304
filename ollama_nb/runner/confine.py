"""The first steps of a child process: end with its parent, write no core file, take over its socket.

A child never outlives its server: the parent-death signal covers a killed server on Linux, the end of file of the
socket every other case. Imports are light, because the small render process uses this module too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence

OPEN_FILES = 1024  # descriptors of a child
_PR_SET_PDEATHSIG = 1


def enter(argv: Sequence[str]) -> socket.socket:
    """Confine this process and return its end of the socket pair; ``argv``: the descriptor, the parent's pid."""
    descriptor, parent = int(argv[0]), int(argv[1])
    _die_with(parent)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    channel = socket.socket(fileno=descriptor)
    channel.setblocking(True)
    return channel


def limit(kind: int, amount: int) -> None:
    """Lower one resource limit, if the system permits that."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(kind)
        ceiling = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (ceiling, ceiling))


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # If the parent died before the call, another process is the parent now.
    if os.getppid() != parent:
        os._exit(1)
