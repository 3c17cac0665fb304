"""Pull a model from a registry into the store."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import Layer, Manifest
from ollama_nb.api.names import ModelName
from ollama_nb.errors import Cancelled, CorruptModel, OllamaError, SourceError
from ollama_nb.store.blobs import CHUNK as HASHED_AT_ONCE
from ollama_nb.store.blobs import BlobStore
from ollama_nb.store.manifest import parse_manifest
from ollama_nb.store.registry.client import RegistryAccess, RegistryClient, connected, origin_of
from ollama_nb.store.registry.errors import ConnectionLost, RegistryRefused, RegistryUnreachable
from ollama_nb.store.registry.session import RegistryResponse
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.locks import TransferLock
from ollama_nb.store.transfer.pace import PROGRESS_INTERVAL, ProgressCallback, Throttle, TransferLimits, throttled
from ollama_nb.store.transfer.partial import PartialBlob, PartProgress, downloaded_bytes, parse_content_range

_JOIN = 0.8
"""Seconds that streams get to end in once their connections are cut."""


@dataclass(frozen=True, slots=True)
class ModelPull:
    """What to pull and how. ``locks``: a folder of ours; ``target``: the local name."""

    store: Store
    name: ModelName
    target: ModelName
    access: RegistryAccess
    locks: Path
    limits: TransferLimits
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
            raw = _fetch_manifest(registry)
            manifest = _parse_manifest(raw)
            layers = (*manifest.layers, manifest.config)
            self._require_space(layers)
            for layer in layers:
                self._ensure_blob(registry, layer, report, cancelled)
        report(Progress("verifying sha256 digest"))  # done already: each blob before it got its name
        report(Progress("writing manifest"))
        if self.store.put_manifest(self.target, raw):
            report(Progress("removing unused layers"))

    def _require_space(self, layers: tuple[Layer, ...]) -> None:
        blobs = self.store.blobs
        missing = {layer.digest: layer.size for layer in layers if blobs.size(layer.digest) != layer.size}
        if missing:
            blobs.require_space(sum(size - downloaded_bytes(blobs, digest, size) for digest, size in missing.items()))

    def _ensure_blob(self, registry: RegistryClient, layer: Layer, report: Report, cancelled: threading.Event) -> None:
        """Have the blob, by whoever fetches it."""
        blobs, digest = self.store.blobs, layer.digest
        status, total = f"pulling {digest.short}", layer.size
        on_progress = throttled(lambda done: report(Progress(status, str(digest), total, done)), total)
        lock = TransferLock(self.locks, f"{digest.hex}-{_store_id(self.store.root)}")
        with lock.acquire(lambda done: on_progress(min(done, total)), cancelled) as held:
            if not (blobs.size(digest) == total and blobs.touch(digest)):

                def on_progress_shared(done: int) -> None:
                    held.publish_progress(done)
                    on_progress(done)

                BlobDownload(registry, blobs, layer, self.limits, on_progress_shared).run()
        on_progress(total)


def _fetch_manifest(registry: RegistryClient) -> bytes:
    """The manifest's bytes; errors begin as Ollama's do."""
    retry_policy, stopped = registry.session.retry_policy, registry.session.stopped
    try:
        return retry_policy.retry(registry.manifest, stopped, unreachable=False)
    except Cancelled:
        raise
    except (RegistryUnreachable, ConnectionLost) as error:
        raise RegistryUnreachable(f"pull model manifest: {error.message}") from error
    except OllamaError as error:
        raise SourceError(f"pull model manifest: {error.message}") from error


def _parse_manifest(raw: bytes) -> Manifest:
    try:
        manifest = parse_manifest(raw)
    except CorruptModel as error:
        raise CorruptModel(
            f"pull model manifest: the registry has something else than a model here: {error}"
        ) from error
    if any(layer.kind == "tensor" for layer in manifest.layers):
        raise SourceError("this model requires MLX support, but the MLX runtime is not available")
    return manifest


def _store_id(root: Path) -> str:
    """Tells stores apart: a transfer is one per blob and store."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]


class RangesUnsupported(Exception):
    """The server does not give the bytes that were asked for: take the blob as a whole."""


class RemoteChanged(Exception):
    """The server has another file now than the one that the part before came from."""


class BlobDownload:
    """Blocking; ``run`` it once. ``show`` is told how many bytes are there, which can also become fewer."""

    def __init__(
        self,
        registry: RegistryClient,
        blobs: BlobStore,
        layer: Layer,
        limits: TransferLimits,
        on_progress: ProgressCallback,
    ) -> None:
        self._registry = registry
        self._blobs = blobs
        self._layer = layer
        self._limits = limits
        self._on_progress = on_progress
        self._ranged = True
        self._may_change = True

    def run(self) -> None:
        """Raises SourceError when the registry does not give these bytes, StoreError, or Cancelled."""
        digest, size = self._layer.digest, self._layer.size
        with PartialBlob(self._blobs, digest, size, self._limits.streams) as partial:
            found = self._fetch_all(partial)
            if found != digest.hex:
                partial.restart()  # once more, and all of it: what was there may have come from anywhere
                found = self._fetch_all(partial)
            if found != digest.hex:
                partial.discard()
                raise SourceError(f"digest mismatch, file must be downloaded again: want {digest}, got sha256:{found}")
            partial.finish()

    def _fetch_all(self, partial: PartialBlob) -> str:
        """Have all bytes; return their digest."""
        while True:
            streams = DownloadStreams(self._registry, partial, self._limits, self._ranged, self._may_change)
            try:
                return streams.run(self._on_progress)
            except RangesUnsupported:
                self._ranged = False
                partial.restart(whole=True)
            except RemoteChanged:
                self._may_change = False  # servers that take turns would go on for ever: the digest decides
                partial.restart()


class DownloadStreams:
    """The threads that fetch the missing parts of one partial."""

    def __init__(
        self, registry: RegistryClient, partial: PartialBlob, limits: TransferLimits, ranged: bool, may_change: bool
    ) -> None:
        self._registry = registry
        self._session = registry.session
        self._partial = partial
        self._ranged, self._may_change = ranged, may_change
        self._todo = deque(part for part in partial.parts if not part.complete)
        self._running = min(limits.streams, len(self._todo))
        self._stop = threading.Event()
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._throttle = Throttle(limits.rate, self._stop)
        self._hash = hashlib.sha256()
        self._hashed = 0

    def run(self, on_progress: ProgressCallback) -> str:
        """Returns the digest of the whole; raises what the first stream to fail raised."""
        threads = [
            threading.Thread(target=self._stream, name="ollama-nb-stream", daemon=True) for _ in range(self._running)
        ]
        for thread in threads:
            thread.start()
        try:
            while threads and not self._finished.is_set():
                on_progress(self._partial.done)
                self._hash_available()
        finally:
            self._end(threads)
        if self._failure is not None:
            raise self._failure
        on_progress(self._partial.done)
        while self._hashed < self._partial.size:
            self._hash_available()
        return self._hash.hexdigest()

    def _end(self, threads: list[threading.Thread]) -> None:
        """No stream writes any more afterwards, not even one that does not end in time."""
        with self._lock:
            self._stop.set()
        if self._running:
            self._session.drop()
        for thread in threads:
            thread.join(_JOIN)

    def _hash_available(self) -> None:
        """For about one tick: hash what has arrived without a gap, wait when there is nothing. Raises Cancelled."""
        until = time.monotonic() + PROGRESS_INTERVAL
        while (left := until - time.monotonic()) > 0 and self._hashed < self._partial.size:
            if self._session.stopped.is_set():
                raise Cancelled
            size = min(HASHED_AT_ONCE, self._partial.contiguous - self._hashed)
            if size < HASHED_AT_ONCE and not self._partial.complete:
                self._finished.wait(left)
                return
            data = self._partial.read(size, self._hashed)
            self._hash.update(data)
            self._hashed += len(data)

    # -- in the threads of the streams -----------------------------------------------------------------------------

    def _stream(self) -> None:
        failure: BaseException | None = None
        try:
            while (part := self._next_part()) is not None:
                self._fetch_part(part)
        except BaseException as error:
            failure = error
        with self._lock:
            self._running -= 1
            if failure is not None and not self._stop.is_set():
                self._failure = failure
                self._stop.set()
            if self._stop.is_set() or not self._running:
                self._finished.set()

    def _next_part(self) -> PartProgress | None:
        with self._lock:
            return self._todo.popleft() if self._todo and not self._stop.is_set() else None

    def _fetch_part(self, part: PartProgress) -> None:
        """Try until the part is there. Tries that brought something do not count."""
        attempt = 0
        while not part.complete and not self._stop.is_set():
            before = part.done
            try:
                self._attempt(part)
            except (ConnectionLost, RegistryRefused, RegistryUnreachable) as failure:
                attempt = 1 if part.done > before else attempt + 1
                self._session.retry_policy.wait(failure, attempt, self._stop)

    def _attempt(self, part: PartProgress) -> None:
        if not self._ranged:
            part.done = 0
        first, last = part.at, part.part.end - 1
        with self._registry.open_blob(self._partial.digest, first, last if self._ranged else None) as response:
            self._check(response, first)
            before = part.done
            while not part.complete and not self._stop.is_set():
                data = response.read(min(self._throttle.chunk, part.part.size - part.done))
                if not data:
                    if part.done == before or not self._ranged:
                        raise ConnectionLost(f"{self._registry.origin.address} ended the blob too early")
                    return
                self._throttle.take(len(data))
                with self._lock:
                    if not self._stop.is_set():
                        self._partial.write(part, data)

    def _check(self, response: RegistryResponse, first: int) -> None:
        """That these are the bytes that were asked for, of the file that the others came from."""
        size = self._partial.size
        if response.status == 206 and self._ranged:
            found = parse_content_range(response.headers.get("Content-Range", ""))
            if found is None or found[0] != first:
                raise RangesUnsupported
            length = found[2]
        elif response.status == 200:
            text = response.headers.get("Content-Length", "")
            length = int(text) if text.isdecimal() else None
            if self._ranged and (len(self._partial.parts) > 1 or first):
                raise RangesUnsupported
        else:
            raise SourceError(f"{self._registry.origin.address} answers {response.status} to a request for a blob")
        if length is not None and length != size:
            raise SourceError(
                f"{self._registry.origin.address} has {length} bytes under {self._partial.digest}, "
                f"but the manifest says {size}"
            )
        self._check_etag(response.headers.get("ETag", ""))

    def _check_etag(self, etag: str) -> None:
        """A weak tag says nothing about bytes."""
        if not etag or etag.startswith("W/"):
            return
        if self._partial.etag and etag != self._partial.etag and self._may_change:
            raise RemoteChanged
        self._partial.etag = etag
