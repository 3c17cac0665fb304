"""A model from a registry into the store: manifest, then each blob once, then the manifest's file."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import Layer, Manifest
from ollama_nb.api.names import ModelName
from ollama_nb.errors import Cancelled, CorruptModel, OllamaError, SourceError
from ollama_nb.store.manifest import parse_manifest
from ollama_nb.store.registry.client import Access, Registry, connected, origin_of
from ollama_nb.store.registry.errors import Broken, Unreachable
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.download import Download
from ollama_nb.store.transfer.pace import Limits
from ollama_nb.store.transfer.partial import arrived
from ollama_nb.store.transfer.progress import meter
from ollama_nb.store.transfer.sharing import Queue


@dataclass(frozen=True, slots=True)
class Pull:
    """What to pull and how. ``locks``: a folder of ours; ``target``: the local name."""

    store: Store
    name: ModelName
    target: ModelName
    access: Access
    locks: Path
    limits: Limits
    insecure: bool = False

    def run(self, report: Report, cancelled: threading.Event) -> None:
        """Blocking. Reports every line but the last one, ``success``.

        Raises SourceError for what the registry does or does not do, CorruptModel for a manifest that is none,
        StoreError, or Cancelled; what has arrived stays for the next time.
        """
        origin = origin_of(self.name, insecure=self.insecure)
        if origin.scheme == "http" and not origin.is_loopback:
            report(Progress(f"using plain http to {origin.address}: nothing that comes from there is secret or sure"))
        report(Progress("pulling manifest"))
        with connected(self.name, self.access, cancelled, insecure=self.insecure) as registry:
            raw = _manifest(registry)
            manifest = _parsed(raw)
            layers = (*manifest.layers, manifest.config)
            self._need_room(layers)
            for layer in layers:
                self._obtain(registry, layer, report, cancelled)
        report(Progress("verifying sha256 digest"))  # done already: each blob before it got its name
        report(Progress("writing manifest"))
        if self.store.put_manifest(self.target, raw):
            report(Progress("removing unused layers"))

    def _need_room(self, layers: tuple[Layer, ...]) -> None:
        blobs = self.store.blobs
        missing = {layer.digest: layer.size for layer in layers if blobs.size(layer.digest) != layer.size}
        if missing:
            blobs.need(sum(size - arrived(blobs, digest, size) for digest, size in missing.items()))

    def _obtain(self, registry: Registry, layer: Layer, report: Report, cancelled: threading.Event) -> None:
        """Have the blob, by whoever fetches it."""
        blobs, digest = self.store.blobs, layer.digest
        status, total = f"pulling {digest.short}", layer.size
        show = meter(lambda done: report(Progress(status, str(digest), total, done)), total)
        queue = Queue(self.locks, f"{digest.hex}-{_place(self.store.root)}")
        with queue.turn(lambda done: show(min(done, total)), cancelled) as turn:
            if not (blobs.size(digest) == total and blobs.touch(digest)):

                def tell(done: int) -> None:
                    turn.show(done)
                    show(done)

                Download(registry, blobs, layer, self.limits, tell).run()
        show(total)


def _manifest(registry: Registry) -> bytes:
    """The manifest's bytes; errors begin as Ollama's do."""
    patience, stopped = registry.session.patience, registry.session.stopped
    try:
        return patience.retry(registry.manifest, stopped, unreachable=False)
    except Cancelled:
        raise
    except (Unreachable, Broken) as error:
        raise Unreachable(f"pull model manifest: {error.message}") from error
    except OllamaError as error:
        raise SourceError(f"pull model manifest: {error.message}") from error


def _parsed(raw: bytes) -> Manifest:
    try:
        manifest = parse_manifest(raw)
    except CorruptModel as error:
        raise CorruptModel(
            f"pull model manifest: the registry has something else than a model here: {error}"
        ) from error
    if any(layer.kind == "tensor" for layer in manifest.layers):
        raise SourceError("this model requires MLX support, but the MLX runtime is not available")
    return manifest


def _place(root: Path) -> str:
    """Tells stores apart: a transfer is one per blob and store."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
