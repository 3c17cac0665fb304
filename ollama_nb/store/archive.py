"""Export models to one tar file in OCI image layout, and import them: for machines without network access.

No path of the archive is used on disk. Its blobs go into the blob store under a verified digest, and a manifest is
published when all its blobs are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ollama_nb import disk
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import MANIFEST_TYPE, Layer, Manifest, Model
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import BadRequest, Cancelled, CorruptModel, OllamaError, StoreError
from ollama_nb.store.blobs import CHUNK, BlobStore, digest_of
from ollama_nb.store.gguf import read_gguf
from ollama_nb.store.manifest import GGUF_KINDS, MAX_JSON, check_limits, parse_config, parse_manifest
from ollama_nb.store.store import Store

MAX_ENTRIES = 100_000  # entries of an archive
MAX_MODELS = 1000  # models of an archive
MAX_READ = 4 << 20
"""Bytes that the tar reader may request at once; headers of a valid archive are far smaller."""

_LAYOUT, _INDEX = "oci-layout", "index.json"
_NAME_KEYS = (
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
)  # annotations that may hold the model's name


def export(
    models: Sequence[Model], blobs: BlobStore, path: Path, *, report: Report, cancelled: threading.Event
) -> None:
    """Write the models to a tar file at ``path``, each blob once. Blocks.

    The output is reproducible. Raises StoreError for a missing or damaged blob, without creating the file.
    """
    layers = {layer.digest: layer for model in models for layer in (model.manifest.config, *model.manifest.layers)}
    total = sum(layer.size for layer in layers.values())
    done = 0
    with disk.atomic_writer(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_file(tar, _LAYOUT, b'{"imageLayoutVersion":"1.0.0"}\n')
        _add_file(tar, _INDEX, _encode_index(models))
        for raw in dict.fromkeys(model.manifest.raw for model in models):
            _add_file(tar, _blob_name(digest_of(raw)), raw)
        for digest in sorted(layers):
            with _HashingReader(blobs, layers[digest], cancelled) as source:
                tar.addfile(_make_entry(_blob_name(digest), layers[digest].size), source)
                source.check()
            done += layers[digest].size
            report(Progress("exporting", completed=done, total=total))


@dataclass(frozen=True, slots=True)
class _Image:
    name: ModelName
    manifest: Manifest


def import_models(
    path: Path, store: Store, *, as_: ModelName | None, report: Report, cancelled: threading.Event
) -> list[ModelName]:
    """Import every model of an archive and return their names. Blocks.

    Raises BadRequest if the file is not a valid archive of models; models before the invalid one may have been
    published.
    """
    with disk.store_errors("read", path, reading=True), disk.open_regular(path) as file:
        archive = _Archive(file, os.fstat(file.fileno()).st_size, cancelled)
        images = archive.images()
        if as_ is not None and len(images) != 1:
            raise BadRequest(
                f"the archive contains {len(images)} models: a new name is possible for a single model only"
            )
        wanted = {layer.digest: layer for image in images for layer in (image.manifest.config, *image.manifest.layers)}
        missing = {digest: layer for digest, layer in wanted.items() if not _is_stored(store.blobs, layer, cancelled)}
        archive.check(missing.values())
        store.blobs.require_space(sum(layer.size for layer in missing.values()))
        for layer in missing.values():
            _import_blob(archive, layer, store.blobs, report, cancelled)
        for image in images:
            parse_config(store.blobs.read(image.manifest.config.digest, MAX_JSON))
            store.put_manifest(as_ or image.name, image.manifest.raw, cancelled)
    return [as_ or image.name for image in images]


def _import_blob(archive: _Archive, layer: Layer, blobs: BlobStore, report: Report, cancelled: threading.Event) -> None:
    with blobs.writer() as writer, archive.open(layer.digest) as source:
        while chunk := source.read(CHUNK):
            if cancelled.is_set():
                raise Cancelled
            writer.write(chunk)
            report(Progress(f"importing {layer.digest.short}", str(layer.digest), layer.size, writer.size))
        if layer.kind in GGUF_KINDS and writer.digest == layer.digest:
            read_gguf(writer.path)
        writer.commit(layer.digest)


def _is_stored(blobs: BlobStore, layer: Layer, cancelled: threading.Event) -> bool:
    return blobs.size(layer.digest) == layer.size and blobs.touch(layer.digest, cancelled)


class _Archive:
    """The regular files of a tar archive by name. Other entries than files and folders are rejected."""

    def __init__(self, file: BinaryIO, size: int, cancelled: threading.Event) -> None:
        self._entries: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.TarFile(fileobj=BoundedReader(file, MAX_READ), errorlevel=2)
            for number, entry in enumerate(self._tar):
                if cancelled.is_set():
                    raise Cancelled
                self._add_entry(number, entry, size)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise BadRequest(f"not a valid tar archive: {error}") from error

    def images(self) -> list[_Image]:
        """Return the models of the index. Raises BadRequest or CorruptModel."""
        if _INDEX not in self._entries:
            raise BadRequest(f"the archive contains no models: it has no {_INDEX}")
        try:
            listed = json.loads(self._read(_INDEX))["manifests"]
            described = [(_parse_name(item), Digest.parse(item["digest"])) for item in listed]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise BadRequest(f"{_INDEX} of the archive is not valid: {error}") from error
        if not 0 < len(described) <= MAX_MODELS:
            raise BadRequest(f"the archive contains {len(described)} models (1 to {MAX_MODELS} are allowed)")
        manifests = {digest: self._manifest(digest) for digest in dict.fromkeys(digest for _, digest in described)}
        return [_Image(name, manifests[digest]) for name, digest in described]

    def check(self, layers: Iterable[Layer]) -> None:
        """Raise CorruptModel unless every layer is in the archive with the size that its manifest declares."""
        for layer in layers:
            entry = self._entries.get(_blob_name(layer.digest))
            if entry is None or entry.size != layer.size:
                raise CorruptModel(f'the archive lacks blob "{layer.digest}" of {layer.size} bytes')

    def open(self, digest: Digest) -> Any:
        return self._tar.extractfile(self._entries[_blob_name(digest)])

    def _add_entry(self, number: int, entry: tarfile.TarInfo, size: int) -> None:
        if number >= MAX_ENTRIES:
            raise BadRequest(f"the archive has more than {MAX_ENTRIES} entries")
        try:
            tarfile.data_filter(entry, "/nowhere")
        except tarfile.FilterError as error:
            raise BadRequest(f"the archive has an unsafe entry: {error}") from error
        name = entry.name.removeprefix("./")
        if entry.isdir():
            return
        if not entry.isreg() or entry.issparse():
            raise BadRequest(f"the archive has an entry that is not a regular file: {name!r}")
        if entry.offset_data + entry.size > size:
            raise BadRequest("the archive is truncated")
        if name in self._entries:
            raise BadRequest(f"the archive contains {name!r} twice")
        self._entries[name] = entry

    def _read(self, name: str) -> bytes:
        entry = self._entries[name]
        if entry.size > MAX_JSON:
            raise BadRequest(f"{name} of the archive is larger than {MAX_JSON} bytes")
        file = self._tar.extractfile(entry)
        return file.read() if file is not None else b""

    def _manifest(self, digest: Digest) -> Manifest:
        name = _blob_name(digest)
        if name not in self._entries:
            raise CorruptModel(f'the archive lacks the manifest "{digest}"')
        raw = self._read(name)
        if digest_of(raw) != digest:
            raise CorruptModel(f'the manifest "{digest}" of the archive is damaged')
        manifest = parse_manifest(raw)
        check_limits(manifest)
        return manifest


class BoundedReader(io.RawIOBase):
    """Limits single reads to ``limit`` bytes: readers of archives would load a header of any length into memory.

    Raises ValueError for longer reads.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._limit = file, limit

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size if 0 <= size <= self._limit else self._limit + 1)
        if len(data) > self._limit:
            raise ValueError("a header of the archive is too long")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


class _HashingReader:
    """A blob that is hashed while it is exported."""

    def __init__(self, blobs: BlobStore, layer: Layer, cancelled: threading.Event) -> None:
        if blobs.size(layer.digest) != layer.size:
            raise _damaged_error(layer.digest)
        self._digest = layer.digest
        self._file = blobs.find(layer.digest).open("rb")
        self._hash = hashlib.sha256()
        self._cancelled = cancelled

    def read(self, size: int = -1) -> bytes:
        if self._cancelled.is_set():
            raise Cancelled
        chunk = self._file.read(size)
        self._hash.update(chunk)
        return chunk

    def check(self) -> None:
        if self._hash.hexdigest() != self._digest.hex:
            raise _damaged_error(self._digest)

    def __enter__(self) -> _HashingReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _encode_index(models: Iterable[Model]) -> bytes:
    manifests = [
        {
            "mediaType": MANIFEST_TYPE,
            "digest": str(digest_of(model.manifest.raw)),
            "size": len(model.manifest.raw),
            "annotations": {_NAME_KEYS[0]: model.name.full},
        }
        for model in models
    ]
    return (json.dumps({"schemaVersion": 2, "manifests": manifests}, indent=2) + "\n").encode()


def _parse_name(item: Mapping[str, Any]) -> ModelName:
    annotations = item.get("annotations") or {}
    text = next((annotations[key] for key in _NAME_KEYS if annotations.get(key)), "")
    try:
        return ModelName.parse(text)
    except OllamaError:
        raise BadRequest(f"a model of the archive has the name {text!r}, which is not a valid model name") from None


def _make_entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_make_entry(name, len(data)), io.BytesIO(data))


def _blob_name(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def _damaged_error(digest: Digest) -> StoreError:
    return StoreError(f'blob "{digest}" is missing or damaged: run `ollama-nb fsck` to check the store')
