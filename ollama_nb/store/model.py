"""From a manifest to the model that it describes: its files are found, its texts are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ollama_nb.api.models import Layer, Manifest, Model
from ollama_nb.api.names import ModelName
from ollama_nb.store.blobs import BlobStore
from ollama_nb.store.manifest import parse_config, parse_messages, parse_params

MAX_TEXT = 4 << 20
"""The most bytes of a config or a text layer that are read."""


def read_model(blobs: BlobStore, name: ModelName, manifest: Manifest, modified_at: float) -> Model:
    """Of several layers of one kind the last one counts, but for adapters, projectors and licences.

    Raises NotFound, StoreError or CorruptModel for a config or text that is missing, too large or broken; whether the
    files are there is not looked at.
    """
    by_kind: dict[str, list[Layer]] = {}
    for layer in manifest.layers:
        kind = "template" if layer.kind == "prompt" else layer.kind  # "prompt": what early models call it
        by_kind.setdefault(kind, []).append(layer)

    def read(layer: Layer) -> bytes:
        return blobs.read(layer.digest, MAX_TEXT)

    def files(kind: str) -> tuple[Path, ...]:
        return tuple(blobs.find(layer.digest) for layer in by_kind.get(kind, ()))

    def last(kind: str) -> bytes:
        return read(by_kind[kind][-1]) if kind in by_kind else b""

    weights = by_kind["model"][-1].digest if "model" in by_kind else None
    params, messages = last("params"), last("messages")
    return Model(
        name=name,
        digest=hashlib.sha256(manifest.raw).hexdigest(),
        manifest=manifest,
        config=parse_config(read(manifest.config)),
        modified_at=modified_at,
        size=sum(layer.size for layer in (*manifest.layers, manifest.config)),
        weights=None if weights is None else blobs.find(weights),
        weights_digest=weights,
        adapters=files("adapter"),
        projectors=files("projector"),
        draft=next(reversed(files("draft")), None),
        template=last("template").decode("utf-8", "replace") if "template" in by_kind else None,
        system=last("system").decode("utf-8", "replace"),
        params=parse_params(params) if params else {},
        messages=parse_messages(messages) if messages else (),
        licenses=tuple(read(layer).decode("utf-8", "replace") for layer in by_kind.get("license", ())),
    )
