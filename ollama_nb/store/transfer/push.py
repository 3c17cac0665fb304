"""A model from the store to a registry: each blob, then the manifest's bytes as they are, so that its digest stays."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import MANIFEST_TYPE, Layer, Manifest
from ollama_nb.api.names import ModelName
from ollama_nb.errors import AccessDenied, OllamaError, StoreError
from ollama_nb.store.registry.client import Access, Registry, connected, origin_of
from ollama_nb.store.registry.errors import Refused
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.pace import Limits
from ollama_nb.store.transfer.progress import meter
from ollama_nb.store.transfer.upload import Upload


@dataclass(frozen=True, slots=True)
class Push:
    """What to push and how."""

    store: Store
    name: ModelName
    access: Access
    limits: Limits
    insecure: bool = False

    def run(self, report: Report, cancelled: threading.Event) -> None:
        """Blocking. Reports every line but the last one, ``success``. The manifest is sent after all blobs.

        Raises AccessDenied when the registry does not let this user push, SourceError for other errors of the registry,
        ModelNotFound, StoreError or Cancelled.
        """
        report(Progress("retrieving manifest"))
        origin = origin_of(self.name, insecure=self.insecure)
        try:
            manifest = self.store.resolve(self.name).manifest
            layers = (*manifest.layers, manifest.config)
            self._require(layers)
        except OllamaError:
            report(Progress("couldn't retrieve manifest"))
            raise
        if origin.scheme == "http" and not origin.is_loopback:
            report(Progress(f"using plain http to {origin.address}: everyone on the way can read what is sent"))
        with connected(self.name, self.access, cancelled, insecure=self.insecure) as registry, _denials():
            for layer in layers:
                self._send(registry, layer, report)
            report(Progress("pushing manifest"))
            raw, media_type = manifest.raw, _media_type(manifest)
            registry.session.patience.retry(
                lambda: registry.put_manifest(raw, media_type), registry.session.stopped, unreachable=False
            )

    def _require(self, layers: tuple[Layer, ...]) -> None:
        """Nothing is sent of a model that is not whole."""
        for layer in layers:
            if self.store.blobs.size(layer.digest) != layer.size:
                raise StoreError(
                    f'blob "{layer.digest}" of {self.name.short} is missing or damaged: pull or create it again'
                )

    def _send(self, registry: Registry, layer: Layer, report: Report) -> None:
        status, digest = f"pushing {layer.digest.short}", str(layer.digest)
        show = meter(lambda done: report(Progress(status, digest, layer.size, done)), layer.size)
        Upload(registry, self.store.blobs.find(layer.digest), layer, self.limits, show).run()


@contextlib.contextmanager
def _denials() -> Iterator[None]:
    """Raise AccessDenied, which clients know by its code, for a refusal by HTTP status."""
    try:
        yield
    except Refused as error:
        if error.http_status not in (401, 403):
            raise
        raise AccessDenied(error.message) from error


def _media_type(manifest: Manifest) -> str:
    """What the manifest says of itself."""
    said = json.loads(manifest.raw).get("mediaType")
    return said if isinstance(said, str) and said.isascii() and said.isprintable() and said else MANIFEST_TYPE
