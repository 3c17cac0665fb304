"""Check a store: hash every blob, parse every manifest, and optionally move damaged files out of the store.

Damaged files are moved, not deleted; a pull then downloads exactly the missing blobs.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ollama_nb import disk
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import Layer, Manifest
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import BadRequest, Cancelled, OllamaError
from ollama_nb.store.gguf import read_gguf
from ollama_nb.store.manifest import GGUF_KINDS, MAX_JSON, parse_config
from ollama_nb.store.store import Store

BUFFER = 4 << 20  # bytes that are hashed at a time


@dataclass(frozen=True, slots=True)
class CheckProblem:
    """One problem. ``kind`` is ``blob``, ``manifest`` or ``model``, ``what`` its digest, path or name.

    ``moved``: the file was moved out of the store.
    """

    kind: str
    what: str
    why: str
    moved: bool = False


@dataclass(slots=True)
class CheckResult:
    """The number of files checked, and the problems found."""

    manifests: int = 0
    blobs: int = 0
    bytes: int = 0
    problems: list[CheckProblem] = field(default_factory=list)


def check(store: Store, *, aside: Path | None, report: Report, cancelled: threading.Event) -> CheckResult:
    """Check all blobs, manifests and models. Blocks; may be interrupted at any time.

    Damaged blobs and manifests are moved to the folder ``aside``, if given. Raises Cancelled, or StoreError if the
    store cannot be read.
    """
    checker = _Checker(store, aside, report, cancelled)
    manifests = dict(checker.manifests())
    checker.blobs()
    for name, manifest in manifests.items():
        checker.model(name, manifest)
    return checker.found


class _Checker:
    def __init__(self, store: Store, aside: Path | None, report: Report, cancelled: threading.Event) -> None:
        self._store = store
        self._aside = aside
        self._report = report
        self._cancelled = cancelled
        self._broken: set[Digest] = set()
        self.found = CheckResult()

    def manifests(self) -> Iterator[tuple[ModelName, Manifest]]:
        """Yield the valid manifests and record the others."""
        for file in self._store.survey():
            self.found.manifests += 1
            if file.name is not None and file.manifest is not None:
                yield file.name, file.manifest
            else:
                where = str(file.path.relative_to(self._store.root))
                self._add_problem("manifest", where, file.error, file.path, _file_state(file.path))

    def blobs(self) -> None:
        """Hash all blobs."""
        sizes = {digest: self._store.blobs.size(digest) or 0 for digest in self._store.blobs.digests()}
        total = sum(sizes.values())
        for digest, size in sizes.items():
            path = self._store.blobs.path(digest)
            before = _file_state(path)
            found = self._hash(path, total)
            if found == digest.hex or before is None:
                self.found.blobs += 1
                continue
            self._broken.add(digest)
            why = "cannot be read" if found is None else f"does not match its digest ({size} bytes)"
            self._add_problem("blob", str(digest), why, path, before)

    def model(self, name: ModelName, manifest: Manifest) -> None:
        for layer in (manifest.config, *manifest.layers):
            why = self._find_fault(layer, is_config=layer is manifest.config)
            if why:
                self.found.problems.append(CheckProblem("model", name.short, why))
                return

    def _find_fault(self, layer: Layer, *, is_config: bool) -> str:
        """Describe the problem of one layer of a model; empty if it is valid."""
        if layer.digest in self._broken:
            return f"its blob {layer.digest.short} is damaged"
        size = self._store.blobs.size(layer.digest)
        if size is None:
            return f"its blob {layer.digest.short} is missing"
        if size != layer.size:
            return f"its blob {layer.digest.short} has {size} bytes instead of {layer.size}"
        try:
            if is_config:
                parse_config(self._store.blobs.read(layer.digest, MAX_JSON))
            elif layer.kind in GGUF_KINDS:
                read_gguf(self._store.blobs.find(layer.digest))
        except OllamaError as error:
            return error.message
        return ""

    def _hash(self, path: Path, total: int) -> str | None:
        """Return the digest of a file; None if it cannot be read."""
        hashed, buffer = hashlib.sha256(), bytearray(BUFFER)
        view = memoryview(buffer)
        try:
            with disk.open_regular(path) as file:
                while count := file.readinto(buffer):
                    if self._cancelled.is_set():
                        raise Cancelled
                    hashed.update(view[:count])
                    self.found.bytes += count
                    self._report(Progress("checking blobs", completed=self.found.bytes, total=total))
        except (OSError, BadRequest):  # BadRequest: it is not a regular file
            return None
        return hashed.hexdigest()

    def _add_problem(self, kind: str, what: str, why: str, path: Path, before: tuple[int, ...] | None) -> None:
        moved = False
        if self._aside is not None:
            with disk.folder_lock(self._store.root):
                if before is not None and _file_state(path) == before:  # not replaced in the meantime
                    self._store.move_aside(path, self._aside)
                    moved = True
        self.found.problems.append(CheckProblem(kind, what, why, moved))


def _file_state(path: Path) -> tuple[int, ...] | None:
    """Return values that change when a file is replaced or modified; None if it does not exist."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
