"""Pull a model from a registry: fetch the manifest, download each missing blob, publish the manifest.

A blob is downloaded in parallel parts into a sparse file (``partial.py``) and gets its name once its digest is
verified. The calling thread reports progress, hashes the bytes that have arrived without a gap, and stops the streams
when one of them fails permanently or the caller cancels.
"""

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
from ollama_nb.store.blobs import CHUNK, BlobStore
from ollama_nb.store.manifest import check_limits, parse_manifest
from ollama_nb.store.registry.client import RegistryAccess, RegistryClient, open_registry, origin_of
from ollama_nb.store.registry.errors import RegistryConnectionLost, RegistryRefused, RegistryUnreachable
from ollama_nb.store.registry.session import RegistryResponse
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.locks import TransferLock
from ollama_nb.store.transfer.pace import PROGRESS_INTERVAL, ProgressCallback, Throttle, TransferLimits, throttled
from ollama_nb.store.transfer.partial import PartialBlob, PartProgress, downloaded_bytes, parse_content_range

_JOIN_SECONDS = 0.8
"""Seconds to wait for the stream threads after their connections were closed."""


@dataclass(frozen=True, slots=True)
class ModelPull:
    """One pull. ``target`` is the local name, ``locks`` the folder of the lock files."""

    store: Store
    name: ModelName
    target: ModelName
    access: RegistryAccess
    locks: Path
    limits: TransferLimits
    insecure: bool = False

    def run(self, report: Report, cancelled: threading.Event) -> None:
        """Pull the model. Blocks; reports every status line but the last one, ``success``.

        Raises SourceError for errors of the registry, CorruptModel for an invalid manifest, StoreError, or Cancelled.
        Downloaded bytes are kept, so that the next pull resumes.
        """
        origin = origin_of(self.name, insecure=self.insecure)
        if origin.scheme == "http" and not origin.is_loopback:
            report(
                Progress(f"using plain http to {origin.address}: the download is neither encrypted nor authenticated")
            )
        report(Progress("pulling manifest"))
        with open_registry(self.name, self.access, cancelled, insecure=self.insecure) as registry:
            raw = _fetch_manifest(registry)
            manifest = _parse_manifest(raw)
            layers = (*manifest.layers, manifest.config)
            self._require_space(layers)
            for layer in layers:
                self._ensure_blob(registry, layer, report, cancelled)
        report(Progress("verifying sha256 digest"))  # each blob was verified before it got its name
        report(Progress("writing manifest"))
        if self.store.put_manifest(self.target, raw, cancelled):
            report(Progress("removing unused layers"))

    def _require_space(self, layers: tuple[Layer, ...]) -> None:
        blobs = self.store.blobs
        missing = {layer.digest: layer.size for layer in layers if blobs.size(layer.digest) != layer.size}
        if missing:
            blobs.require_space(sum(size - downloaded_bytes(blobs, digest, size) for digest, size in missing.items()))

    def _ensure_blob(self, registry: RegistryClient, layer: Layer, report: Report, cancelled: threading.Event) -> None:
        """Make sure that the blob is in the store, downloaded by this or by another process."""
        blobs, digest = self.store.blobs, layer.digest
        status, total = f"pulling {digest.short}", layer.size
        on_progress = throttled(lambda done: report(Progress(status, str(digest), total, done)), total)
        lock = TransferLock(self.locks, f"{digest.hex}-{_store_id(self.store.root)}")
        with lock.acquire(lambda done: on_progress(min(done, total)), cancelled) as held:
            if not (blobs.size(digest) == total and blobs.touch(digest, cancelled)):

                def publish(done: int) -> None:
                    held.publish_progress(done)
                    on_progress(done)

                BlobDownload(registry, blobs, layer, self.limits, publish).run()
        on_progress(total)


def _fetch_manifest(registry: RegistryClient) -> bytes:
    """Fetch the manifest; error messages begin as Ollama's do."""
    retry_policy, stopped = registry.session.retry_policy, registry.session.stopped
    try:
        return retry_policy.retry(registry.manifest, stopped, unreachable=False)
    except Cancelled:
        raise
    except (RegistryUnreachable, RegistryConnectionLost) as error:
        raise RegistryUnreachable(f"pull model manifest: {error.message}") from error
    except OllamaError as error:
        raise SourceError(f"pull model manifest: {error.message}", code=error.code) from error


def _parse_manifest(raw: bytes) -> Manifest:
    try:
        manifest = parse_manifest(raw)
        check_limits(manifest)
    except CorruptModel as error:
        raise CorruptModel(f"pull model manifest: the registry has no valid model under this name: {error}") from error
    if any(layer.kind == "tensor" for layer in manifest.layers):
        raise SourceError("this model requires MLX support, but the MLX runtime is not available")
    return manifest


def _store_id(root: Path) -> str:
    """Return an identifier of the store for lock names: locks are per blob and store."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]


class RangesUnsupported(Exception):
    """The server ignores Range headers. Download the blob as a whole."""


class RemoteChanged(Exception):
    """The file on the server is not the one that earlier parts came from. Download all parts again."""


class BlobDownload:
    """The download of one blob. ``on_progress`` receives the downloaded bytes, which may decrease after a restart."""

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
        """Download the blob; may be called once. Blocks.

        Raises SourceError if the registry does not deliver the blob, StoreError, or Cancelled.
        """
        digest, size = self._layer.digest, self._layer.size
        with PartialBlob(self._blobs, digest, size, self._limits.streams) as partial:
            found = self._fetch_all(partial)
            if found != digest.hex:
                partial.restart()  # the bytes of an earlier run may have been damaged: download all of them again
                found = self._fetch_all(partial)
            if found != digest.hex:
                partial.discard()
                raise SourceError(f"digest mismatch, file must be downloaded again: want {digest}, got sha256:{found}")
            partial.finish()

    def _fetch_all(self, partial: PartialBlob) -> str:
        """Download all missing bytes and return the SHA-256 digest of the file."""
        while True:
            streams = DownloadStreams(self._registry, partial, self._limits, self._ranged, self._may_change)
            try:
                return streams.run(self._on_progress)
            except RangesUnsupported:
                self._ranged = False
                partial.restart(whole=True)
            except RemoteChanged:
                self._may_change = False  # load-balanced servers may send different tags: rely on the digest
                partial.restart()


class DownloadStreams:
    """The threads that download the missing parts of one blob."""

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
        """Run the streams; return the digest of the file, or raise the error of the first stream that failed."""
        threads = [
            threading.Thread(target=self._run_stream, name="ollama-nb-stream", daemon=True)
            for _ in range(self._running)
        ]
        for thread in threads:
            thread.start()
        try:
            while threads and not self._finished.is_set():
                on_progress(self._partial.done)
                self._hash_available()
        finally:
            self._stop_threads(threads)
        if self._failure is not None:
            raise self._failure
        on_progress(self._partial.done)
        while self._hashed < self._partial.size:
            self._hash_available()
        return self._hash.hexdigest()

    def _stop_threads(self, threads: list[threading.Thread]) -> None:
        """Stop the streams. After this no stream writes, not even one whose thread is still running."""
        with self._lock:
            self._stop.set()
        if self._running:
            self._session.drop_connections()
        for thread in threads:
            thread.join(_JOIN_SECONDS)

    def _hash_available(self) -> None:
        """Hash contiguous bytes for about one progress interval, waiting if necessary. Raises Cancelled."""
        until = time.monotonic() + PROGRESS_INTERVAL
        while (left := until - time.monotonic()) > 0 and self._hashed < self._partial.size:
            if self._session.stopped.is_set():
                raise Cancelled
            size = min(CHUNK, self._partial.contiguous - self._hashed)
            if size < CHUNK and not self._partial.complete:
                self._finished.wait(left)
                return
            data = self._partial.read(size, self._hashed)
            self._hash.update(data)
            self._hashed += len(data)

    # -- in the stream threads ---------------------------------------------------------------------------------------

    def _run_stream(self) -> None:
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
        """Download one part with retries. An attempt that made progress resets the count."""
        attempt = 0
        while not part.complete and not self._stop.is_set():
            before = part.done
            try:
                self._request_part(part)
            except (RegistryConnectionLost, RegistryRefused, RegistryUnreachable) as failure:
                attempt = 1 if part.done > before else attempt + 1
                self._session.retry_policy.wait(failure, attempt, self._stop)

    def _request_part(self, part: PartProgress) -> None:
        if not self._ranged:
            part.done = 0
        first, last = part.at, part.part.end - 1
        with self._registry.open_blob(self._partial.digest, first, last if self._ranged else None) as response:
            self._check_response(response, first)
            before = part.done
            while not part.complete and not self._stop.is_set():
                data = response.read(min(self._throttle.chunk, part.part.size - part.done))
                if not data:
                    if part.done == before or not self._ranged:
                        raise RegistryConnectionLost(
                            f"{self._registry.origin.address} closed the connection before the end of the blob"
                        )
                    return
                self._throttle.take(len(data))
                with self._lock:
                    if not self._stop.is_set():
                        self._partial.write(part, data)

    def _check_response(self, response: RegistryResponse, first: int) -> None:
        """Check that the response has the requested bytes of the same file as the other parts."""
        size = self._partial.size
        if response.status == 206 and self._ranged:
            found = parse_content_range(response.headers.get("Content-Range", ""))
            if found is None or found[0] != first:
                raise RangesUnsupported
            length = found[2]
        elif response.status == 200:
            length = response.left
            if self._ranged and (len(self._partial.parts) > 1 or first):
                raise RangesUnsupported
        else:
            raise SourceError(
                f"{self._registry.origin.address} answered a request for a blob with status {response.status}"
            )
        if length is not None and length != size:
            raise SourceError(
                f"{self._registry.origin.address} has {length} bytes for {self._partial.digest}, "
                f"but the manifest specifies {size}"
            )
        self._check_etag(response.headers.get("ETag", ""))

    def _check_etag(self, etag: str) -> None:
        """Compare the ETag with that of earlier responses. Weak tags do not identify bytes and are ignored."""
        if not etag or etag.startswith("W/"):
            return
        if self._partial.etag and etag != self._partial.etag and self._may_change:
            raise RemoteChanged
        self._partial.etag = etag
