"""``ollama-nb.json``: what a wheel of ours says of its model's files, and which numbered part wheels carry them.

A file without pieces lies in the wheel itself. Parts may only be distributions that are named after the wheel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_nb.api.names import Digest
from ollama_nb.errors import BadRequest, CorruptModel

FILE = "ollama-nb.json"
FORMAT = 1
MAX_FILES, MAX_PIECES = 64, 10_000
MAX_SIZE = 1 << 40
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SEPARATORS = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one file in a wheel of their own."""

    distribution: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class PackedFile:
    """One file of a model; ``name`` is its member's, beside the description."""

    name: str
    size: int
    digest: Digest
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    model: str
    version: str
    files: tuple[PackedFile, ...]


def normalized(distribution: str) -> str:
    """The spelling under which an index keeps a distribution (PEP 503)."""
    return _SEPARATORS.sub("-", distribution).lower()


def part_name(distribution: str, number: int) -> str:
    return f"{distribution}-part{number:03d}"


def encode(description: Description) -> bytes:
    body = {
        "format": FORMAT,
        "model": description.model,
        "version": description.version,
        "files": [_file_json(file) for file in description.files],
    }
    return (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()


def parse(raw: bytes, distribution: str) -> Description:
    """Raises CorruptModel for a description that is none, BadRequest for one of a later program."""
    try:
        body = json.loads(raw)
        if body["format"] != FORMAT:
            raise BadRequest(f"{FILE} has format {body['format']!r}: pulling it needs a newer version of this program")
        files = tuple(_file(item, distribution) for item in body["files"])
        description = Description(str(body["model"]), str(body["version"]), files)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptModel(f"{FILE} is no description of a model: {error}") from error
    names = {file.name for file in files}
    if not 0 < len(files) <= MAX_FILES or len(names) != len(files):
        raise CorruptModel(f"{FILE} names no files, too many, or one twice")
    return description


def _file_json(file: PackedFile) -> dict[str, Any]:
    body: dict[str, Any] = {"name": file.name, "size": file.size, "sha256": file.digest.hex}
    if file.pieces:
        body["parts"] = [
            {"distribution": piece.distribution, "size": piece.size, "sha256": piece.digest.hex}
            for piece in file.pieces
        ]
    return body


def _file(item: Mapping[str, Any], distribution: str) -> PackedFile:
    parts = item.get("parts", ())
    if len(parts) > MAX_PIECES:
        raise ValueError(f"more than {MAX_PIECES} parts")
    pieces = tuple(_piece(part, distribution) for part in parts)
    file = PackedFile(item["name"], _size(item), _digest(item), pieces)
    if not _MEMBER.fullmatch(file.name):
        raise ValueError(f"the file name {file.name!r}")
    if file.pieces and sum(piece.size for piece in file.pieces) != file.size:
        raise ValueError(f"the parts of {file.name} are not as long as the file")
    return file


def _piece(item: Mapping[str, Any], distribution: str) -> Piece:
    name = item["distribution"]
    if not re.fullmatch(re.escape(normalized(distribution)) + r"-part\d+", normalized(name)):
        raise ValueError(f"{name!r} is no part of {distribution}")
    return Piece(name, _size(item), _digest(item))


def _size(item: Mapping[str, Any]) -> int:
    size = item["size"]
    if type(size) is not int or not 0 <= size <= MAX_SIZE:
        raise ValueError(f"the size {size!r}")
    return size


def _digest(item: Mapping[str, Any]) -> Digest:
    return Digest.parse(f"sha256:{item['sha256']}")
