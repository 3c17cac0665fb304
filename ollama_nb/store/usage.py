"""Disk usage of a store: models, shared and unused blobs, unfinished downloads."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ollama_nb import disk
from ollama_nb.api.models import Manifest
from ollama_nb.api.names import Digest
from ollama_nb.store.blobs import digest_in_name
from ollama_nb.store.store import Store


@dataclass(frozen=True, slots=True)
class FileTotals:
    """Number and total size of a group of files."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """``bytes`` is the size of all layers of a model, ``own`` the bytes that deleting it would free."""

    name: str
    bytes: int
    own: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Disk usage of one store. ``blobs`` counts each blob in use once; ``free`` is the free space of the disk."""

    models: tuple[ModelUsage, ...]
    blobs: FileTotals
    unused: FileTotals
    partial: FileTotals
    free: int


def usage(store: Store) -> Usage:
    """Measure a store. Raises StoreError if it cannot be read."""
    layers = {found.name: _layer_sizes(found.manifest) for found in store.survey() if found.manifest and found.name}
    users = Counter(digest for sizes in layers.values() for digest in sizes)
    models = tuple(
        ModelUsage(name.short, sum(sizes.values()), sum(size for digest, size in sizes.items() if users[digest] == 1))
        for name, sizes in sorted(layers.items())
    )
    with disk.store_errors("read the folder", store.blobs.root, reading=True):
        paths = list(store.blobs.root.iterdir()) if store.blobs.root.is_dir() else []
    paths += store.root.glob(disk.TEMP_PREFIX + "*")
    finished = {path: digest for path in paths if (digest := digest_in_name(path.name))}
    return Usage(
        models,
        blobs=file_totals(path for path, digest in finished.items() if digest in users),
        unused=file_totals(path for path, digest in finished.items() if digest not in users),
        partial=file_totals((path for path in paths if path not in finished), sparse=True),
        free=shutil.disk_usage(_existing_parent(store.root)).free,
    )


def file_totals(paths: Iterable[Path], *, sparse: bool = False) -> FileTotals:
    """Count the regular files among ``paths``. ``sparse``: holes in the files do not count."""
    sizes = [size for path in paths if (size := _size(path, sparse)) is not None]
    return FileTotals(len(sizes), sum(sizes))


def files_below(folder: Path) -> list[Path]:
    """List all files in a folder tree."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def _layer_sizes(manifest: Manifest) -> dict[Digest, int]:
    return {layer.digest: layer.size for layer in (manifest.config, *manifest.layers)}


def _size(path: Path, sparse: bool) -> int | None:
    size = disk.regular_size(path)
    return min(size, path.stat().st_blocks * 512) if size is not None and sparse else size


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
