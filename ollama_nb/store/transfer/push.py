"""Push a model to a registry: upload each blob that is missing there, then the manifest, byte for byte.

A blob that the registry has is skipped; one that came from another repository of the same registry is mounted; any
other is uploaded in chunks. A failed chunk is resumed from the offset that the registry reports, or the blob is
uploaded again in a new upload session.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from ollama_nb import disk
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import MANIFEST_TYPE, Layer, Manifest
from ollama_nb.api.names import ModelName
from ollama_nb.errors import AccessDenied, BadRequest, OllamaError, SourceError, StoreError
from ollama_nb.store.registry.client import RegistryAccess, RegistryClient, check, open_registry, origin_of
from ollama_nb.store.registry.errors import NotInRegistry, RegistryConnectionLost, RegistryRefused, RegistryUnreachable
from ollama_nb.store.registry.session import RegistryResponse
from ollama_nb.store.registry.urls import Origin, redirected
from ollama_nb.store.store import Store
from ollama_nb.store.transfer.pace import ProgressCallback, Throttle, TransferLimits, throttled
from ollama_nb.store.transfer.partial import TARGET_PARTS

MIN_CHUNK, MAX_CHUNK = 100_000_000, 1_000_000_000  # bytes of an upload chunk
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")

_SESSIONS = 3
"""How many upload sessions are tried for one blob."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelPush:
    """One push."""

    store: Store
    name: ModelName
    access: RegistryAccess
    limits: TransferLimits
    insecure: bool = False

    def run(self, report: Report, cancelled: threading.Event) -> None:
        """Push the model. Blocks; reports every status line but the last one, ``success``.

        Raises AccessDenied when the registry does not let this user push, SourceError for other errors of the registry,
        ModelNotFound, StoreError or Cancelled.
        """
        report(Progress("retrieving manifest"))
        origin = origin_of(self.name, insecure=self.insecure)
        try:
            manifest = self.store.resolve(self.name).manifest
            layers = (*manifest.layers, manifest.config)
            self._require_complete(layers)
        except OllamaError:
            report(Progress("couldn't retrieve manifest"))
            raise
        if origin.scheme == "http" and not origin.is_loopback:
            report(Progress(f"using plain http to {origin.address}: the upload is not encrypted"))
        with (
            open_registry(self.name, self.access, cancelled, insecure=self.insecure) as registry,
            _translated_denials(),
        ):
            for layer in layers:
                self._send(registry, layer, report)
            report(Progress("pushing manifest"))
            raw, media_type = manifest.raw, _media_type(manifest)
            registry.session.retry_policy.retry(
                lambda: registry.put_manifest(raw, media_type), registry.session.stopped, unreachable=False
            )

    def _require_complete(self, layers: tuple[Layer, ...]) -> None:
        """Raise StoreError unless every blob of the model is complete."""
        for layer in layers:
            if self.store.blobs.size(layer.digest) != layer.size:
                raise StoreError(
                    f'blob "{layer.digest}" of {self.name.short} is missing or damaged: pull or create it again'
                )

    def _send(self, registry: RegistryClient, layer: Layer, report: Report) -> None:
        status, digest = f"pushing {layer.digest.short}", str(layer.digest)
        on_progress = throttled(lambda done: report(Progress(status, digest, layer.size, done)), layer.size)
        RegistryUpload(registry, self.store.blobs.find(layer.digest), layer, self.limits, on_progress).run()


@contextlib.contextmanager
def _translated_denials() -> Iterator[None]:
    """Turn the HTTP statuses 401 and 403 into AccessDenied, whose code is preserved up to the client."""
    try:
        yield
    except RegistryRefused as error:
        if error.http_status not in (401, 403):
            raise
        raise AccessDenied(error.message) from error


def _media_type(manifest: Manifest) -> str:
    """Return the media type that the manifest declares."""
    declared = json.loads(manifest.raw).get("mediaType")
    valid = isinstance(declared, str) and declared.isascii() and declared.isprintable() and declared
    return str(declared) if valid else MANIFEST_TYPE


class UploadLost(RegistryConnectionLost):
    """The registry has lost an upload session or part of its bytes. Start a new session."""


class RegistryUpload:
    """The upload of one blob. ``on_progress`` receives the number of uploaded bytes."""

    def __init__(
        self, registry: RegistryClient, path: Path, layer: Layer, limits: TransferLimits, on_progress: ProgressCallback
    ) -> None:
        self._registry = registry
        self._session = registry.session
        self._path = path
        self._layer = layer
        self._on_progress = on_progress
        self._throttle = Throttle(limits.rate, self._session.stopped)

    def run(self) -> None:
        """Upload the blob; may be called once. Blocks.

        Raises SourceError if the registry rejects it, StoreError if the blob is missing, or Cancelled.
        """
        if not self._retry(lambda: self._registry.has_blob(self._layer.digest)):
            with disk.store_errors("read", self._path, reading=True), self._path.open("rb") as file:
                for _ in range(_SESSIONS - 1):
                    with contextlib.suppress(UploadLost):
                        self._send(file)
                        break
                else:
                    self._send(file)
        self._on_progress(self._layer.size)

    def _retry(self, work: Callable[[], T]) -> T:
        return self._session.retry_policy.retry(work, self._session.stopped, unreachable=False)

    def _send(self, file: BinaryIO) -> None:
        """Upload the blob in one session. Raises UploadLost if a new session may succeed."""
        url = self._retry(self._start_upload)
        if url is None:
            return
        sums: list[bytes] = []
        size = chunk_size(self._layer.size)
        for start in range(0, self._layer.size, size):
            chunk = UploadChunk(file, start, min(size, self._layer.size - start), self._throttle, self._on_progress)
            url = self._send_chunk(url, chunk)
            sums.append(chunk.md5)
        self._commit(url, sums)

    def _start_upload(self) -> str | None:
        """Start an upload session and return its URL; None if the registry mounted the blob instead."""
        url = self._registry.url("blobs/uploads/")
        source = _mount_source(self._layer.from_, self._registry.name)
        if source is not None:
            query = {"mount": str(self._layer.digest), "from": f"{source.namespace}/{source.model}"}
            url += "?" + urlencode(query, safe="/:")
        with self._registry.request("POST", url, {"Content-Length": "0"}) as response:
            check(response)
            return None if response.status == 201 else _next_url(response)

    def _send_chunk(self, url: str, chunk: UploadChunk) -> str:
        """Send one chunk with retries; return the URL for the next chunk. Attempts that made progress do not count."""
        sent = max_sent = attempt = 0
        while True:
            try:
                if attempt:
                    url, sent = self._resume_point(url, chunk)
                if sent == chunk.size:
                    chunk.finish()
                    return url
                return self._patch(url, chunk, sent)
            except UploadLost:
                raise
            except (RegistryConnectionLost, RegistryUnreachable, RegistryRefused) as failure:
                attempt = 1 if sent > max_sent else attempt + 1
                max_sent = max(max_sent, sent)
                self._session.retry_policy.wait(failure, attempt, self._session.stopped)

    def _patch(self, url: str, chunk: UploadChunk, sent: int) -> str:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(chunk.size - sent),
            "Content-Range": f"{chunk.start + sent}-{chunk.end - 1}",
            "X-Redirect-Uploads": "1",
        }
        with self._registry.request("PATCH", url, headers, lambda: chunk.remaining(sent)) as response:
            if response.status != 307:
                check(response)
                return _next_url(response)
            after = _next_url(response)
            storage_url = redirected(url, response.headers.get("Location", ""))
        self._put_to_storage(storage_url, chunk)
        return after

    def _put_to_storage(self, url: str, chunk: UploadChunk) -> None:
        """Upload the chunk to the storage that a signed URL of the registry points to, without credentials."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(chunk.size)}

        def put() -> None:
            with self._session.send("PUT", url, headers, chunk.remaining(0)) as response:
                check(response)

        self._retry(put)

    def _resume_point(self, url: str, chunk: UploadChunk) -> tuple[str, int]:
        """Return the URL of an interrupted session and the number of bytes of the chunk that it has.

        Raises UploadLost.
        """
        with self._registry.request("GET", url) as response:
            try:
                check(response)
            except NotInRegistry as error:
                raise UploadLost(f"{self._registry.origin.address} has lost the upload") from error
            match = _RANGE.fullmatch(response.headers.get("Range", ""))
            # Registries also report "0-0" for a session without any bytes.
            uploaded = int(match[1]) + 1 if match and int(match[1]) else 0
            if not chunk.start <= uploaded <= chunk.end:
                raise UploadLost(f"{self._registry.origin.address} has lost a part of an upload")
            return (_next_url(response) if response.headers.get("Location") else url), uploaded - chunk.start

    def _commit(self, url: str, sums: list[bytes]) -> None:
        """Finish the upload. Ollama's registry verifies the chunks by ``etag``; other registries ignore it."""
        etag = f"{hashlib.md5(b''.join(sums), usedforsecurity=False).hexdigest()}-{len(sums)}"
        query = urlencode({"digest": str(self._layer.digest), "etag": etag})
        url += ("&" if urlsplit(url).query else "?") + query

        def put() -> None:
            with self._registry.request("PUT", url, {"Content-Length": "0"}) as response:
                if response.status == 404 and self._registry.has_blob(self._layer.digest):
                    return  # an earlier attempt succeeded, but its response was lost
                check(response)

        self._retry(put)


class UploadChunk:
    """The bytes ``start`` to ``end`` of a blob, and their MD5 digest once all of them have been read."""

    def __init__(
        self, file: BinaryIO, start: int, size: int, throttle: Throttle, on_progress: ProgressCallback
    ) -> None:
        self._file = file
        self.start, self.size, self.end = start, size, start + size
        self._throttle = throttle
        self._on_progress = on_progress
        self._sum = hashlib.md5(usedforsecurity=False)
        self._summed = 0

    @property
    def md5(self) -> bytes:
        return self._sum.digest()

    def remaining(self, sent: int) -> Iterator[bytes]:
        """Yield the bytes after the first ``sent`` bytes, at the permitted rate."""
        at = sent
        while at < self.size:
            self._throttle.check()
            data = self._read(at)
            self._throttle.take(len(data))
            yield data
            at += len(data)
            self._on_progress(self.start + at)

    def finish(self) -> None:
        """Read the rest of the chunk for its digest, if the registry has it but its response was lost."""
        while self._summed < self.size:
            self._throttle.check()
            self._read(self._summed)

    def _read(self, at: int) -> bytes:
        self._file.seek(self.start + at)
        data = self._file.read(min(self._throttle.chunk, self.size - at))
        if not data:
            raise StoreError("the blob became shorter while it was being uploaded")
        if at <= self._summed:
            new = data[self._summed - at :]
            self._sum.update(new)
            self._summed += len(new)
        return data


def chunk_size(total: int) -> int:
    """Return the chunk size for a blob of ``total`` bytes."""
    return min(MAX_CHUNK, max(MIN_CHUNK, -(-total // TARGET_PARTS)))


def _next_url(response: RegistryResponse) -> str:
    """Return the URL where an upload continues.

    Raises SourceError if the response has none, or for a redirect from https to http.
    """
    location = response.headers.get("Docker-Upload-Location") or response.headers.get("Location")
    if not location:
        raise SourceError(f"{Origin.of(response.url).address} sent no URL for the next part of the upload")
    before, after = Origin.of(response.url), Origin.of(urljoin(response.url, location))
    if before.host == after.host and before.scheme == "https" and after.scheme == "http":
        # A registry behind a TLS-terminating proxy does not know that it is reached over https.
        location = urljoin(response.url, location).replace(str(after), str(before), 1)
    return redirected(response.url, location)


def _mount_source(from_: str, name: ModelName) -> ModelName | None:
    """Return the other repository of the same registry that a layer came from, or None."""
    try:
        source = ModelName.parse(from_)
    except BadRequest:
        return None
    same = source.host.lower() == name.host.lower()
    return source if same and (source.namespace, source.model) != (name.namespace, name.model) else None
