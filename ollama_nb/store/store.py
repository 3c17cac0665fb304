"""The model store: names, manifests and blobs in the layout of a real Ollama, which can share the folder.

Blobs are written before the manifest that uses them and removed after it. A damaged model does not affect others.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from ollama_nb import disk
from ollama_nb.api.models import GGUF, Layer, Manifest, Model
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import Forbidden, InvalidName, ModelNotFound, OllamaError, StoreError
from ollama_nb.store.blobs import BlobStore, digest_in_name
from ollama_nb.store.gguf import read_gguf
from ollama_nb.store.manifest import MAX_JSON, encode_manifest, parse_manifest, read_model

log = logging.getLogger(__name__)

GRACE = 3600.0
"""Seconds; younger files are not pruned, because another process may be about to use them."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file in ``manifests`` with its parsed manifest, or the error if it is not valid."""

    path: Path
    name: ModelName | None
    manifest: Manifest | None
    error: str = ""


class Store:
    """The models in ``root``. Folders are created by the first write, so that a read-only store can be listed.

    ``others`` are read-only stores. Their models are found as well if ``root`` has no model of the same name.
    """

    def __init__(self, root: Path, *, noprune: bool = False, others: Iterable[Path] = ()) -> None:
        self.root = root
        self.noprune = noprune
        self.others: tuple[Store, ...] = tuple(Store(path) for path in others if path.resolve() != root.resolve())
        self.blobs: BlobStore = BlobStore(root / "blobs", [other.blobs for other in self.others])
        self._manifests = disk.Tree(root / "manifests")
        # Unfinished manifests are in the root: Ollama would list files in manifests/ as models.
        self._temps = disk.Tree(root)
        self._warned: set[str] = set()

    # -- reading ---------------------------------------------------------------------------------------------------

    def names(self) -> tuple[ModelName, ...]:
        """Return the names of all manifests, sorted. Raises StoreError if the folder cannot be read."""
        found = []
        for path in self._manifest_files()[0]:
            name = self._name_of(path)
            if name is None:
                self._warn(f"skipping {path.relative_to(self.root)}: its path is not a valid model name")
            else:
                found.append(name)
        return tuple(sorted(found))

    def canonical(self, name: ModelName) -> ModelName:
        """Return the name in the spelling of the manifests on disk; parts are compared case-insensitively."""
        if disk.regular_size(self._path(name)) is not None:
            return name  # the usual case, without listing all models
        names = self.names()
        for known in names:
            if known.key == name.key:
                return name.with_parts(*known.parts)
        columns = zip(*(known.parts for known in names), strict=True) if names else ((),) * 4
        return name.with_parts(*(_respell(part, set(known)) for part, known in zip(name.parts, columns, strict=True)))

    def exists(self, name: ModelName) -> bool:
        """Return whether this store has the model."""
        return disk.regular_size(self._path(self.canonical(name))) is not None

    def resolve(self, name: ModelName) -> Model:
        """Return the model. Raises ModelNotFound, or StoreError if its manifest or config is missing or damaged."""
        try:
            return self._load(self.canonical(name))
        except ModelNotFound:
            if other := self._other_store_with(name):
                return other.resolve(name)
            raise

    def models(self) -> list[Model]:
        """Return every valid model, newest first."""
        found = []
        for name in self.names():
            try:
                found.append(self._load(name))
            except OllamaError as error:
                self._warn(f"skipping: {error.message}")
        seen = {model.name.key for model in found}
        for other in self.others:
            with contextlib.suppress(OllamaError):  # unreadable models of other stores are not reported
                found += [model for model in other.models() if model.name.key not in seen]
            seen = {model.name.key for model in found}
        return sorted(found, key=lambda model: (-int(model.modified_at), model.name))

    def gguf(self, model: Model, *, arrays: bool = False) -> GGUF | None:
        """Return the header of the model's weights; None for a model without weights."""
        return None if model.weights is None else self.gguf_at(model.weights, arrays=arrays)

    def gguf_at(self, path: Path, *, arrays: bool = False) -> GGUF:
        """Return the header of a GGUF file, cached while the file is unchanged (not with ``arrays``)."""
        if arrays:
            return read_gguf(path, arrays=True)
        with disk.store_errors("read", path, reading=True):
            status = path.stat()
        return _cached_header(path, status.st_ino, status.st_size, status.st_mtime_ns)

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_manifest(self, name: ModelName, config: Layer, layers: Iterable[Layer]) -> None:
        """Encode a manifest and publish it; see ``put_manifest``."""
        self.put_manifest(name, encode_manifest(config, layers))

    def put_manifest(self, name: ModelName, raw: bytes, cancelled: Event | None = None) -> tuple[Digest, ...]:
        """Publish a model by its manifest's bytes, replacing a model of the same name. Raises Cancelled.

        Returns the digests of the blobs that only the replaced model used; they have been removed (none are with
        ``noprune``, or if another manifest cannot be read). Raises StoreError, without publishing, if a blob is
        missing.
        """
        digests = _digests(parse_manifest(raw))
        for digest in digests if self.others else ():
            self.blobs.touch(digest, cancelled)  # copies blobs of other stores before the lock is taken
        with disk.folder_lock(self.root):
            return self._publish(name, raw, digests)

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Publish the manifest of a model under a second name."""
        if not self.exists(source) and (other := self._other_store_with(source)):
            self.put_manifest(destination, other._read_manifest(other.canonical(source))[0])
            return
        with self._locked():  # the source must not change before the copy is written
            source = self.canonical(source)
            raw, _ = self._read_manifest(source)
            if source.parts != self.canonical(destination).parts:
                self._publish(destination, raw, _digests(parse_manifest(raw)))

    def delete(self, name: ModelName) -> None:
        """Delete a model, then its empty folders and the blobs that no other model uses.

        No blobs are removed if another manifest cannot be read.
        """
        with self._locked():
            name = self.canonical(name)
            digests = self._digests_of(name)
            if not self._manifests.remove(self._path(name)):
                if other := self._other_store_with(name):
                    raise Forbidden(
                        f"model '{name.short}' is in {disk.display_path(other.root)}, which this program only reads"
                    )
                raise _not_found(name)
            folder = self._path(name).parent
            while folder != self.root and self._remove_empty(folder):
                folder = folder.parent
            self._remove_unused(digests)

    # -- clean-up --------------------------------------------------------------------------------------------------

    def fix_legacy_names(self) -> None:
        """Rename blobs from ``sha256:…``, the form of early versions of Ollama."""
        with disk.store_errors("read the folder", self.blobs.root, reading=True):
            old = [path for path in _list_folder(self.blobs.root) if path.name.startswith("sha256:")]
        for path in old:
            self.blobs.tree.rename(path, path.name.replace(":", "-", 1))

    def prune(self) -> int:
        """Remove unused files that are older than an hour; return their number.

        If any manifest cannot be read nothing is removed, because the blobs that it uses are unknown.
        """
        if self.noprune or not disk.is_folder(self.root):
            return 0
        with disk.folder_lock(self.root), disk.store_errors("clean up", self.root):
            stale = self.stale()
            if stale is None:
                return 0
            trees = {self.blobs.root: self.blobs.tree, self.root: self._temps}
            removed = sum(trees[path.parent].remove(path) for path in stale)
            self._remove_empty_folders()
        return removed

    def stale(self) -> list[Path] | None:
        """Return the files that ``prune`` would remove; None if a manifest cannot be read."""
        used = self._used_blobs()
        if used is None:
            return None
        unused = [path for path in _list_folder(self.blobs.root) if digest_in_name(path.name) not in used]
        return [path for path in (*unused, *self.root.glob(disk.TEMP_PREFIX + "*")) if _is_old(path)]

    def survey(self) -> Iterator[ManifestFile]:
        """Yield every file in the place of a manifest, valid or not, and links there whose target is missing."""
        files, lost = self._manifest_files()
        for path in lost:
            yield ManifestFile(path, None, None, f"{path.relative_to(self.root)} is a link to a missing file or folder")
        for path in files:
            name = self._name_of(path)
            try:
                if name is None:
                    raise StoreError(f"{path.relative_to(self.root)} is not a valid model name")
                yield ManifestFile(path, name, parse_manifest(self._read_manifest(name)[0]))
            except ModelNotFound:
                if os.path.lexists(path):  # else deleted in the meantime
                    yield ManifestFile(path, name, None, f"{path.relative_to(self.root)} is not a readable file")
            except OllamaError as error:
                yield ManifestFile(path, name, None, error.message)

    def move_aside(self, path: Path, folder: Path) -> None:
        """Move a damaged blob or manifest to ``folder``, outside of the store."""
        tree = self.blobs.tree if path.is_relative_to(self.blobs.root) else self._manifests
        disk.move_out(tree, path, folder / "-".join(path.relative_to(self.root).parts))

    # -- internal ----------------------------------------------------------------------------------------------------

    def _other_store_with(self, name: ModelName) -> Store | None:
        """Return the first of the other stores that has the model, or None."""
        for other in self.others:
            with contextlib.suppress(OllamaError):
                if other.exists(name):
                    return other
        return None

    def _path(self, name: ModelName) -> Path:
        return self._manifests.root.joinpath(*name.parts)

    def _name_of(self, path: Path) -> ModelName | None:
        host, namespace, model, tag = path.relative_to(self._manifests.root).parts
        with contextlib.suppress(InvalidName):
            name = ModelName.parse(f"{host}/{namespace}/{model}:{tag}")
            return name if name.parts == (host, namespace, model, tag) else None
        return None

    def _warn(self, text: str) -> None:
        """Log each warning once, because the store is listed often."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning(text)

    def _manifest_files(self) -> tuple[list[Path], list[Path]]:
        """List the regular files exactly four levels below ``manifests``, and the links whose target is missing.

        Such a link may lead to manifests on a disk that is not mounted. Raises StoreError if a folder cannot be read.
        """
        lost: list[Path] = []
        with disk.store_errors("read the models folder", self.root, reading=True):
            # Listing the root distinguishes an unreadable folder from an empty one.
            level = [child for child in _list_folder(self.root) if child == self._manifests.root]
            for _ in range(4):
                folders = [path for path in level if stat.S_ISDIR(_mode(path, lost))]
                level = [child for folder in folders for child in _list_folder(folder)]
            return [path for path in level if stat.S_ISREG(_mode(path, lost))], lost

    def _read_manifest(self, name: ModelName) -> tuple[bytes, float]:
        """Return a manifest's bytes and its modification time."""
        path = self._path(name)
        if disk.regular_size(path) is None:
            raise _not_found(name)
        with disk.store_errors("read", path, reading=True):
            try:
                with path.open("rb") as file:
                    return file.read(MAX_JSON + 1), os.fstat(file.fileno()).st_mtime
            except FileNotFoundError as error:
                raise _not_found(name) from error

    def _load(self, name: ModelName) -> Model:
        raw, modified_at = self._read_manifest(name)
        try:
            return read_model(self.blobs, name, parse_manifest(raw), modified_at)
        except OllamaError as error:
            if self._read_manifest(name)[0] != raw:  # replaced in the meantime; its blobs may be gone
                return self._load(name)
            raise StoreError(f"model '{name.short}' is damaged: {error.message}; pull or create it again") from error

    def _digests_of(self, name: ModelName) -> frozenset[Digest]:
        """Return the blobs of one model; empty if its manifest is missing or not valid."""
        with contextlib.suppress(OllamaError):
            return _digests(parse_manifest(self._read_manifest(name)[0]))
        return frozenset()

    def _used_blobs(self) -> set[Digest] | None:
        """Return the blobs of all manifests; None if one cannot be read, because the blobs that it uses are unknown."""
        used: set[Digest] = set()
        try:
            for found in self.survey():
                if found.manifest is None:
                    raise StoreError(found.error)
                used |= _digests(found.manifest)
        except StoreError as error:
            self._warn(
                f"no blobs are removed, because a manifest cannot be read: {error.message}; `ollama-nb fsck --repair` "
                "sets it aside, `ollama-nb prune` then removes unused blobs"
            )
            return None
        return used

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Lock the store if its folder exists; do not create the folder."""
        return disk.folder_lock(self.root) if disk.is_folder(self.root) else contextlib.nullcontext()

    def _publish(self, name: ModelName, raw: bytes, digests: Iterable[Digest]) -> tuple[Digest, ...]:
        name = self.canonical(name)
        replaced = self._digests_of(name)
        for digest in digests:
            if not self.blobs.touch(digest) or disk.regular_size(self.blobs.path(digest)) is None:
                raise StoreError(f'blob "{digest}" is missing, so model {name.short} was not written; try again')
        self._manifests.write(self._path(name), raw, temps=self._temps)
        return () if self.noprune else self._remove_unused(replaced)

    def _remove_unused(self, digests: Collection[Digest]) -> tuple[Digest, ...]:
        """Remove the blobs that no manifest uses, and return them; none are removed if a manifest cannot be read."""
        used = self._used_blobs() if digests else None
        if used is None:
            return ()
        return tuple(digest for digest in sorted(digests) if digest not in used and self.blobs.remove(digest))

    def _remove_empty(self, folder: Path) -> bool:
        tree = self._temps if folder == self._manifests.root else self._manifests
        return tree.remove_folder(folder)

    def _remove_empty_folders(self) -> None:
        if not self._manifests.root.is_dir():
            return
        for path in sorted(self._manifests.root.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                self._remove_empty(path)
        self._remove_empty(self._manifests.root)


@functools.lru_cache(maxsize=128)
def _cached_header(path: Path, inode: int, size: int, modified: int) -> GGUF:
    return read_gguf(path)


def _digests(manifest: Manifest) -> frozenset[Digest]:
    return frozenset(layer.digest for layer in (*manifest.layers, manifest.config))


def _respell(part: str, known: set[str]) -> str:
    same = sorted(spelling for spelling in known if spelling.lower() == part.lower())
    return part if part in same or not same else same[0]


def _is_old(path: Path) -> bool:
    """Return whether a file or link has not been modified for ``GRACE`` seconds."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        return not stat.S_ISDIR(status.st_mode) and status.st_mtime < time.time() - GRACE
    return False


def _mode(path: Path, lost: list[Path]) -> int:
    """Return the mode of a file, following links; 0 if it is gone, or a link without a target, which joins ``lost``."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        if path.is_symlink():
            lost.append(path)
        return 0


def _list_folder(folder: Path) -> list[Path]:
    """List a folder, sorted; empty if it does not exist."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _not_found(name: ModelName) -> ModelNotFound:
    return ModelNotFound(f"model '{name.short}' not found")
