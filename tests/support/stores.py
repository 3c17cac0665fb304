"""Small stores: models made as users make them, and a check that finds any inconsistency."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.ggufs import gguf

from ollama_nb import families
from ollama_nb.api.models import Model
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.api.requests import CreateRequest
from ollama_nb.store.assemble import assemble
from ollama_nb.store.blobs import digest_in_name
from ollama_nb.store.manifest import parse_config, parse_manifest
from ollama_nb.store.sources import CreateTools
from ollama_nb.store.store import Store


def create(
    store: Store, name: str, *, base: Model | None = None, files: dict[str, bytes] | None = None, **request: Any
) -> list[str]:
    """Create a model and return the status lines."""
    digests = {path: store.blobs.add(data) for path, data in (files or {}).items()}
    lines: list[str] = []
    wanted = CreateRequest(model=name, files={path: str(digest) for path, digest in digests.items()}, **request)
    tools = CreateTools(family_defaults=families.create_defaults)
    assemble(store, wanted, base=base, files=digests, report=lambda p: lines.append(p.status), tools=tools)
    return lines


def tiny(store: Store, name: str, **request: Any) -> Model:
    """Create a model with the smallest valid weights."""
    create(store, name, files={"tiny.gguf": gguf()}, **request)
    return store.resolve(ModelName.parse(name))


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file of a store by its path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def published(root: Path) -> dict[str, str]:
    """Manifest path → digest of its bytes."""
    return published_in(snapshot(root))


def published_in(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items() if name.startswith("manifests/")}


def check_sound(root: Path) -> None:
    """Check that every manifest is readable, its blobs exist, and every blob has the right digest."""
    check_sound_files(snapshot(root))


def check_sound_files(files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        digest = digest_in_name(Path(name).name) if name.startswith("blobs/") else None
        assert digest is None or hashlib.sha256(data).hexdigest() == digest.hex, name
    for name, raw in files.items():
        if not name.startswith("manifests/"):
            continue
        assert len(Path(name).parts) == 5, name
        manifest = parse_manifest(raw)
        for layer in (manifest.config, *manifest.layers):
            blob = files.get(f"blobs/{layer.digest.filename}")
            assert blob is not None and len(blob) == layer.size, f"{name}: {layer.digest}"
        parse_config(files[f"blobs/{manifest.config.digest.filename}"])


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())
