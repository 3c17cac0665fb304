"""pip in a child process: one wheel, by the user's own configuration, into one folder. Nothing of it is installed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ollama_nb.errors import Cancelled, NotFound, SourceError
from ollama_nb.store import pip_child
from ollama_nb.store.blobs import CHUNK

_NO_NETWORK = re.compile(
    r"connection|Could not fetch URL|HTTPS?ConnectionPool|SSL|ProxyError|timed? ?out|Network is unreachable"
    r"|HTTP error|\b(401|403|407|5\d\d) (Client |Server )?Error",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


class PipDownload:
    """Blocking; ``run`` it once. ``progress`` is told how many bytes are there."""

    def __init__(
        self, requirement: str, folder: Path, progress: Callable[[int], None], cancelled: threading.Event
    ) -> None:
        self._requirement = requirement
        self._wheels = folder / "wheels"
        self._work = folder / "work"
        self._log = folder / "pip.log"
        self._progress = progress
        self._cancelled = cancelled

    def run(self) -> Path:
        """The wheel. Raises SourceError, NotFound when the index has none for this machine, Cancelled."""
        self._wheels.mkdir()
        self._work.mkdir()
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._work,
                env=os.environ | {"TMPDIR": str(self._work), "PYTHONUTF8": "1"},
                start_new_session=True,
            )
            try:
                self._wait(process)
            finally:
                _kill_group(process)
        if process.returncode:
            raise self._error()
        found = sorted(self._wheels.glob("*.whl"))
        if len(found) != 1:
            raise SourceError(f"pip gave {len(found)} wheels for pip://{self._requirement} instead of one")
        return found[0]

    def _command(self) -> list[str]:
        # -P keeps a pip.py in any folder from being run in pip's place.
        pip = [sys.executable, "-P", pip_child.__file__, str(os.getpid()), "download"]
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
        plain = ["--no-color", "--progress-bar=off"]  # a notebook's kernel asks all its children for colours
        return [*pip, *options, *plain, "--dest", str(self._wheels), "--", self._requirement]

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until pip ends; meanwhile the growth of its files is the only progress that every version of it shows."""
        shown = 0
        while process.poll() is None:
            if self._cancelled.wait(0.1):
                raise Cancelled
            size = largest_file(self._work)
            if size > max(shown, CHUNK):
                shown = size
                self._progress(size)

    def _error(self) -> Exception:
        lines = [line.strip() for line in self._log.read_bytes()[-65536:].decode("utf-8", "replace").splitlines()]
        lines = [_CREDENTIALS.sub("", line) for line in lines if line and not line.startswith("[notice]")]
        last = lines[-1].removeprefix("ERROR: ") if lines else "no output"
        if "No module named pip" in last:
            return SourceError("pip is missing in this environment: install it with `python -m ensurepip`")
        trouble = [line for line in lines if line.startswith(("WARNING:", "ERROR:")) and _NO_NETWORK.search(line)]
        if trouble:
            line = trouble[-1].removeprefix("WARNING: ").removeprefix("ERROR: ")
            return SourceError(f"cannot reach the package index: {line}")
        if any("No matching distribution" in line for line in lines):
            return NotFound(f"no wheel for pip://{self._requirement} in the package index (pip: {last})")
        return SourceError(f"pip cannot download pip://{self._requirement}: {last}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """pip and whatever it started; all that they write is thrown away with their folder."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def largest_file(folder: Path) -> int:
    """Bytes of the largest file below a folder that another process fills and empties at the same time."""
    # os.walk passes over folders that vanish under it; Path.rglob raises.
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return max(map(_size, files), default=0)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
