"""Runtime files: how a user's servers and clients find each other.

A server writes ``{"url", "key", "pid", "build"}`` into a file that only its user can read, and removes it when it ends:

- ``server.json`` in Ollama's state folder: the background server;
- ``serve-PORT.json`` there: a server that ``ollama serve`` started;
- ``ollama-nb-PID.json`` in Jupyter's runtime folder: the extension in a Jupyter server.

Keys and prompts must reach no other program. Files that other users own or can read are ignored. A file can also be
left behind by a server that was killed, and another program, even of another user, may listen on its port since.
Therefore every connection begins with a challenge: the client sends a random text, and the server proves with an HMAC
that it knows the key of the file. Key and prompt follow only after a correct proof (decision 48).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ollama_nb import __version__
from ollama_nb.errors import StoreError
from ollama_nb.net import is_loopback_url

CHALLENGE, PROOF = "X-Ollama-Challenge", "X-Ollama-Proof"  # headers of a request for a proof, and of its reply
_CHALLENGE_BYTES = 16  # random bytes; a proof that was seen before is never asked for again
_PROOF_CONTEXT = b"ollama-nb server proof\n"  # the key signs nothing else with this prefix
_MAX_BYTES = 1 << 16  # size of a runtime file


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """A server's address, the key that it accepts, its process id and its version."""

    url: str
    key: str
    pid: int
    build: str = ""


def key_hash(key: str) -> bytes:
    """SHA-256. A plain hash is sufficient because keys are 256 random bits, not passwords."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_challenge() -> str:
    """A random text that a server must sign."""
    return os.urandom(_CHALLENGE_BYTES).hex()


def prove(hashed_key: bytes, challenge: str) -> str:
    """The proof that its maker knows the key, for this challenge only; it reveals nothing about the key."""
    return hmac.digest(hashed_key, _PROOF_CONTEXT + challenge.encode("utf-8", "surrogateescape"), "sha256").hex()


def is_proof(found: str, key: str, challenge: str) -> bool:
    """Whether ``found`` is the proof of a server that knows the key."""
    return hmac.compare_digest(found.encode("utf-8", "replace"), prove(key_hash(key), challenge).encode())


def background_file(home: Path) -> Path:
    """The runtime file of the background server whose state folder is ``home``."""
    return home / "server.json"


def serve_file(home: Path, port: int) -> Path:
    """The runtime file of the ``ollama serve`` that listens on ``port``."""
    return home / f"serve-{port}.json"


def jupyter_file(folder: Path, pid: int) -> Path:
    """The runtime file of the Jupyter server ``pid``; ``folder`` is Jupyter's runtime folder."""
    return folder / f"ollama-nb-{pid}.json"


def write(path: Path, url: str, key: str) -> None:
    """Write the runtime file of this process, mode 0600, in one step for its readers. Raises StoreError."""
    described = {"url": url, "key": key, "pid": os.getpid(), "build": __version__}
    # Not by ollama_nb.disk: every client imports this module, and importing disk takes a tenth of their start-up time.
    temp = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.unlink(missing_ok=True)
        with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(described, file)
        temp.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: Path) -> RuntimeInfo | None:
    """Read a runtime file. Return None if it is missing, incomplete, or owned or readable by other users."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o077):
                return None
            found = json.loads(file.read(_MAX_BYTES)) if stat.S_ISREG(status.st_mode) else {}
        return RuntimeInfo(str(found["url"]), str(found["key"]), int(found["pid"]), str(found.get("build", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_running(path: Path) -> RuntimeInfo | None:
    """Read the runtime file of another process of this user that is alive and serves plain HTTP on this machine.

    Return None for symbolic links and for this process's own file. The process id may belong to another process by now:
    only the proof shows that the server is the one that wrote the file.
    """
    found = None if path.is_symlink() else read(path)
    if found is None or found.pid == os.getpid() or not is_loopback_url(found.url) or not _is_alive(found.pid):
        return None
    try:
        parts = urlsplit(found.url)
        return found if parts.scheme == "http" and parts.port else None
    except ValueError:
        return None


def _is_alive(pid: int) -> bool:
    """Whether a process of this user has that id."""
    if pid <= 0:  # ids of groups
        return False
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return True


def running_servers(home: Path, jupyter: Path) -> list[RuntimeInfo]:
    """This user's other running servers, by the runtime files in ``home`` and in Jupyter's folder ``jupyter``."""
    files = [background_file(home), *home.glob("serve-*.json"), *jupyter.glob("ollama-nb-*.json")]
    return [found for file in sorted(files) if (found := read_running(file)) is not None]


def of_parent_jupyter(env: Mapping[str, str]) -> RuntimeInfo | None:
    """The Jupyter server that started this process, if the extension runs in it."""
    folder = jupyter_runtime_dir(env)
    try:
        written = set(folder.glob("ollama-nb-*.json"))
    except OSError:
        return None
    if not written:
        return None
    for pid in _ancestors(env):
        file = jupyter_file(folder, pid)
        if file in written and (found := read(file)):
            return found
    return None


def jupyter_runtime_dir(env: Mapping[str, str]) -> Path:
    """Jupyter's folder for runtime files, by the rules of ``jupyter_core.paths``, whose import would take longer.

    With ``JUPYTER_PLATFORM_DIRS``, and on Windows, ``jupyter_core`` itself is asked.
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


def _ancestors(env: Mapping[str, str]) -> Iterator[int]:
    """Process ids: the parent that a kernel's environment names, then the parents of this process, nearest first."""
    named = env.get("JPY_PARENT_PID", "")
    if named.isdigit():
        yield int(named)
    pid = os.getppid()
    while pid > 1:
        yield pid
        pid = _parent(pid)


def _parent(pid: int) -> int:
    """The parent of a process; 0 if the system does not report it (not Linux)."""
    try:
        stat_line = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat_line.rpartition(b")")[2].split()[1])  # the name in brackets may hold any character
    except (OSError, ValueError, IndexError):
        return 0
