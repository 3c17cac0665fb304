"""Backups of the files that ``ollama launch --config`` changes, so that ``--restore`` puts them back byte for byte.

A program has one record, in ``launch/backups`` of our state folder. It holds the contents of each file before the first
change; a second change keeps them. The record is on disk before the file is touched.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from ollama_nb import disk
from ollama_nb.errors import StoreError

PRIVATE = 0o600  # mode of files that may contain a key


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file before our first change. ``content`` is base64, None if there was no file; ``written``: digest of ours."""

    path: str
    content: str | None
    mode: int
    written: str


@dataclass(frozen=True, slots=True)
class RestoredFile:
    """A file that was put back, or removed because it had not existed; ``kept`` is a copy of later changes."""

    path: Path
    removed: bool
    kept: Path | None = None


class ConfigBackups:
    """The backups of one program's files."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        self._record = folder / f"{program}.json"

    def change(self, path: Path, apply: Callable[[str], str]) -> None:
        """Write ``apply(present text)`` to a file, keeping the file from before the first change.

        A symbolic link stays a link: its target is changed. Raises StoreError.
        """
        path = path.resolve()
        present = _read(path)
        text = apply("" if present is None else present.decode("utf-8", "surrogateescape"))
        data = text.encode("utf-8", "surrogateescape")
        saved = self._load()
        first = saved.get(str(path)) or SavedFile(str(path), _encode(present), _mode(path), "")
        saved[str(path)] = SavedFile(first.path, first.content, first.mode, _digest(data))
        self._save(saved)
        disk.write(path, data, PRIVATE)

    def restore(self) -> list[RestoredFile]:
        """Put every file back and forget the backups. A version with later changes is kept as a copy."""
        restored = [self._restore(file) for file in self._load().values()]
        if restored:
            disk.Tree(self._folder).remove(self._record)
        return restored

    def _restore(self, file: SavedFile) -> RestoredFile:
        path = Path(file.path)
        before = None if file.content is None else base64.b64decode(file.content)
        present = _read(path)
        kept = None
        if present is not None and present != before and _digest(present) != file.written:
            kept = self._folder / f"{self._record.stem}-{path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
            disk.write(kept, present, PRIVATE)
        if before is not None:
            disk.write(path, before, PRIVATE)
            path.chmod(file.mode)
        elif present is not None:
            disk.Tree(path.parent).remove(path)
        return RestoredFile(path, before is None, kept)

    def _load(self) -> dict[str, SavedFile]:
        data = _read(self._record)
        if data is None:
            return {}
        try:
            files = [SavedFile(**entry) for entry in json.loads(data)["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{disk.display_path(self._record)} is damaged: {error}") from None
        return {file.path: file for file in files}

    def _save(self, files: dict[str, SavedFile]) -> None:
        document = {"files": [asdict(file) for file in files.values()]}
        disk.write(self._record, json.dumps(document).encode(), PRIVATE)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {disk.display_path(path)}: {error.strerror or error}") from None


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return PRIVATE


def _encode(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()
