"""Pack a model into wheels that any package index can serve: one wheel, or a main wheel and numbered part wheels.

The output is reproducible: members are stored in a fixed order with fixed times. Every blob is hashed while it is
packed, so that a damaged blob is never published.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ollama_nb import disk
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, Cancelled, StoreError
from ollama_nb.store import pieces
from ollama_nb.store.blobs import CHUNK, BlobStore
from ollama_nb.store.pieces import PackedFile, Piece, WheelDescription

PART_SIZE = 100_000_000
"""Bytes; the usual size limit of package indexes for one file."""
MIN_PART_SIZE = 64 << 10  # bytes
_OVERHEAD = 16 << 10
"""Bytes reserved in each wheel for metadata, directory and names."""

_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?")
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time of a ZIP file
_REGULAR_FILE = 0o100644 << 16  # mode rw-r--r-- as external attributes of a ZIP member
_WHEEL = b"Wheel-Version: 1.0\nGenerator: ollama-nb\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True, slots=True)
class WheelContent:
    """The content of a wheel: digests of ``files`` by their names in the wheel, and texts."""

    distribution: str
    version: str
    model: str
    files: Mapping[str, Digest]
    modelfile: str
    card: str
    licenses: tuple[str, ...] = ()


def distribution_name(text: str) -> str:
    """Derive the name of a distribution from a model name. Raises BadRequest if no valid character is left."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.").lower()
    if not name:
        raise BadRequest(f"{text!r} cannot be turned into the name of a wheel: choose one with --name")
    return name


def pack(
    content: WheelContent, blobs: BlobStore, folder: Path, *, part_size: int, report: Report, cancelled: threading.Event
) -> list[Path]:
    """Write the wheels into ``folder`` and return their paths, the main wheel first. Blocks.

    The main wheel is written last. Raises BadRequest for an invalid name, version or part size, StoreError for a
    missing or damaged blob.
    """
    _check(content, part_size)
    sizes = {name: _blob_size(blobs, digest) for name, digest in content.files.items()}
    texts = sum(len(text.encode()) for text in (content.modelfile, content.card, content.card, *content.licenses))
    fits = sum(sizes.values()) + texts + _OVERHEAD <= part_size
    packer = _Packer(content, blobs, folder, sum(sizes.values()), report, cancelled)
    return packer.write_one_wheel(sizes) if fits else packer.write_in_parts(sizes, part_size - _OVERHEAD)


def _check(content: WheelContent, part_size: int) -> None:
    if not _DISTRIBUTION.fullmatch(content.distribution):
        raise BadRequest(f"invalid name for a wheel: {content.distribution!r}")
    if not _VERSION.fullmatch(content.version):
        raise BadRequest(f"invalid version for a wheel: {content.version!r} (write it as 1.0 or 2.1.post1)")
    if part_size < MIN_PART_SIZE:
        raise BadRequest(f"parts of {part_size} bytes are too small: the minimum is {MIN_PART_SIZE}")


def _blob_size(blobs: BlobStore, digest: Digest) -> int:
    size = blobs.size(digest)
    if size is None:
        raise StoreError(f'blob "{digest}" is missing: pull or create the model again')
    return size


class _Packer:
    def __init__(
        self,
        content: WheelContent,
        blobs: BlobStore,
        folder: Path,
        total: int,
        report: Report,
        cancelled: threading.Event,
    ) -> None:
        self._content = content
        self._blobs = blobs
        self._folder = folder
        self._total = total
        self._done = 0
        self._report = report
        self._cancelled = cancelled

    def write_one_wheel(self, sizes: Mapping[str, int]) -> list[Path]:
        files = tuple(PackedFile(name, sizes[name], digest) for name, digest in self._content.files.items())
        return [self._write_main(files, inside=True)]

    def write_in_parts(self, sizes: Mapping[str, int], max_size: int) -> list[Path]:
        parts: list[Path] = []
        files = tuple(
            PackedFile(name, sizes[name], digest, self._write_file_parts(name, digest, sizes[name], max_size, parts))
            for name, digest in self._content.files.items()
        )
        return [self._write_main(files, inside=False), *parts]

    def _write_file_parts(
        self, name: str, digest: Digest, size: int, max_size: int, written: list[Path]
    ) -> tuple[Piece, ...]:
        """Write the part wheels of one file and append their paths to ``written``."""
        found = []
        file_hash = hashlib.sha256()
        with self._blobs.find(digest).open("rb") as blob:
            for start in range(0, size, max_size):
                length = min(max_size, size - start)
                distribution = pieces.part_name(self._content.distribution, len(written) + 1)
                path, part = self._write_part(distribution, name, self._read_chunks(blob, length, file_hash), length)
                written.append(path)
                found.append(Piece(distribution, length, part))
        _require_equal(digest, Digest(file_hash.hexdigest()))
        return tuple(found)

    def _write_part(self, distribution: str, name: str, chunks: Iterable[bytes], length: int) -> tuple[Path, Digest]:
        summary = f"Part of the model wheel {self._content.distribution}"
        with self._wheel(distribution) as (path, wheel):
            digest = wheel.stream(f"{wheel.package}/{name}.part", length, chunks)
            wheel.close(_metadata(distribution, self._content.version, summary))
        return path, digest

    def _write_main(self, files: tuple[PackedFile, ...], *, inside: bool) -> Path:
        content = self._content
        with self._wheel(content.distribution) as (path, wheel):
            for file in files if inside else ():
                file_hash = hashlib.sha256()
                with self._blobs.find(file.digest).open("rb") as blob:
                    wheel.stream(
                        f"{wheel.package}/{file.name}", file.size, self._read_chunks(blob, file.size, file_hash)
                    )
                _require_equal(file.digest, Digest(file_hash.hexdigest()))
            description = WheelDescription(content.model, content.version, files)
            wheel.add(f"{wheel.package}/{pieces.FILE}", pieces.encode_description(description))
            wheel.add(f"{wheel.package}/Modelfile", content.modelfile.encode())
            wheel.add(f"{wheel.package}/README.md", content.card.encode())
            licenses = [(f"LICENSE-{number:02d}.txt", text) for number, text in enumerate(content.licenses, 1)]
            for name, text in licenses:
                wheel.add(f"{wheel.info}/licenses/{name}", text.encode())
            wheel.close(
                _metadata(
                    content.distribution,
                    content.version,
                    f"The model {content.model} for Ollama",
                    licenses=[name for name, _ in licenses],
                    requires=[piece.distribution for file in files for piece in file.pieces],
                    description=content.card,
                )
            )
        return path

    @contextmanager
    def _wheel(self, distribution: str) -> Iterator[tuple[Path, _Wheel]]:
        stem = f"{_escape(distribution)}-{self._content.version}"
        path = self._folder / f"{stem}-py3-none-any.whl"
        with disk.atomic_writer(path) as file:
            wheel = _Wheel(file, stem)
            try:
                yield path, wheel
            finally:
                wheel.abandon()

    def _read_chunks(self, blob: BinaryIO, length: int, file_hash: hashlib._Hash) -> Iterator[bytes]:
        while length and (chunk := blob.read(min(CHUNK, length))):
            if self._cancelled.is_set():
                raise Cancelled
            file_hash.update(chunk)
            length -= len(chunk)
            self._done += len(chunk)
            self._report(Progress(f"packing {self._content.model}", completed=self._done, total=self._total))
            yield chunk


class _Wheel:
    """A wheel that is being written; ``close`` adds METADATA, WHEEL and RECORD."""

    def __init__(self, file: BinaryIO, stem: str) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._record: list[str] = []
        self.package = stem.partition("-")[0]
        self.info = f"{stem}.dist-info"

    def add(self, name: str, data: bytes) -> None:
        self.stream(name, len(data), [data])

    def stream(self, name: str, size: int, chunks: Iterable[bytes]) -> Digest:
        info = zipfile.ZipInfo(name, _TIME)
        info.create_system = 3  # Unix, for reproducible output on all systems
        info.external_attr = _REGULAR_FILE
        info.file_size = size  # zipfile chooses Zip64 by this size
        hashed = hashlib.sha256()
        with self._zip.open(info, "w") as member:
            for chunk in chunks:
                hashed.update(chunk)
                member.write(chunk)
        encoded = base64.urlsafe_b64encode(hashed.digest()).decode().rstrip("=")
        self._record.append(f"{name},sha256={encoded},{size}\n")
        return Digest(hashed.hexdigest())

    def close(self, metadata: bytes) -> None:
        self.add(f"{self.info}/METADATA", metadata)
        self.add(f"{self.info}/WHEEL", _WHEEL)
        record = f"{self.info}/RECORD"
        self.add(record, ("".join(self._record) + f"{record},,\n").encode())
        self._zip.close()

    def abandon(self) -> None:
        """Release the file after an error. Does nothing after ``close``."""
        with suppress(OSError, ValueError):
            self._zip.close()


def _metadata(
    distribution: str,
    version: str,
    summary: str,
    *,
    licenses: Iterable[str] = (),
    requires: Iterable[str] = (),
    description: str = "",
) -> bytes:
    lines = ["Metadata-Version: 2.4", f"Name: {distribution}", f"Version: {version}", f"Summary: {summary}"]
    lines += [f"License-File: {name}" for name in licenses]
    lines += [f"Requires-Dist: {part}=={version}" for part in requires]
    if description:
        lines += ["Description-Content-Type: text/markdown", "", description]
    return ("\n".join(lines) + "\n").encode()


def _escape(distribution: str) -> str:
    """Escape a distribution name for file and folder names of wheels."""
    return re.sub(r"[-_.]+", "_", distribution).lower()


def _require_equal(expected: Digest, found: Digest) -> None:
    if found != expected:
        raise StoreError(
            f'blob "{expected}" is damaged: `ollama-nb fsck --repair`, then pull or create the model again'
        )
