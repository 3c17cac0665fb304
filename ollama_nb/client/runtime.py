"""Clients of the servers that runtime files name, and where Jupyter's are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ollama_nb.client.client import Client
from ollama_nb.runtime import Runtime, read


def answering(found: Runtime) -> Client | None:
    """A client of that server, if it is alive and takes the key."""
    client = Client(found.url, found.key)
    return client if client.answers() else None


def of_jupyter(env: Mapping[str, str]) -> Runtime | None:
    """The Jupyter server that started this process, when our extension runs in it."""
    folder = jupyter_runtime_dir(env)
    try:
        written = {path.name for path in folder.glob("ollama-nb-*.json")}
    except OSError:
        return None
    if not written:
        return None
    for pid in _forebears(env):
        if f"ollama-nb-{pid}.json" in written and (found := read(folder / f"ollama-nb-{pid}.json")):
            return found
    return None


def jupyter_runtime_dir(env: Mapping[str, str]) -> Path:
    """Jupyter's folder for runtime files, by the rules of jupyter_core.paths (importing that costs more than all this).

    ``JUPYTER_PLATFORM_DIRS`` is left to jupyter_core itself.
    """
    if folder := env.get("JUPYTER_RUNTIME_DIR"):
        return Path(folder)
    if folder := env.get("JUPYTER_DATA_DIR"):
        return Path(folder) / "runtime"
    switch = env.get("JUPYTER_PLATFORM_DIRS", "no").lower()
    if sys.platform == "win32" or switch not in {"no", "n", "false", "off", "0", "0.0"}:
        from jupyter_core.paths import jupyter_runtime_dir as ask_jupyter

        return Path(ask_jupyter())
    home = Path("~").expanduser()
    if sys.platform == "darwin":
        return home / "Library" / "Jupyter" / "runtime"
    return Path(env.get("XDG_DATA_HOME") or home / ".local" / "share") / "jupyter" / "runtime"


def _forebears(env: Mapping[str, str]) -> Iterator[int]:
    """The process that a kernel names as its parent, then the parents of this one, nearest first."""
    named = env.get("JPY_PARENT_PID", "")
    if named.isdigit():
        yield int(named)
    pid = os.getppid()
    while pid > 1:
        yield pid
        pid = _parent(pid)


def _parent(pid: int) -> int:
    """The parent of a process; 0 where that cannot be known (other systems than Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat.rpartition(b")")[2].split()[1])  # the name in brackets may hold anything
    except (OSError, ValueError, IndexError):
        return 0
