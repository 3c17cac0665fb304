"""One repository of a registry: manifests and blobs over the API that Ollama's registry and Docker's share."""

from __future__ import annotations

import contextlib
import email.utils
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ollama_nb.api.models import MANIFEST_TYPE
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import AccessDenied, SourceError
from ollama_nb.store.manifest import MAX_JSON
from ollama_nb.store.registry.authorization import DENIED, Authorization
from ollama_nb.store.registry.credentials import Credentials, credential_files
from ollama_nb.store.registry.errors import NotInRegistry, RegistryRefused, RetryPolicy
from ollama_nb.store.registry.session import Body, RegistryResponse, RegistrySession, Resolve, resolve
from ollama_nb.store.registry.urls import Origin, redirected

MAX_ERROR = 64 << 10
MAX_REDIRECTS = 5
_SHOWN = 1000
_REDIRECTS = (301, 302, 303, 307, 308)
_ACCEPTED = f"{MANIFEST_TYPE}, application/vnd.oci.image.manifest.v1+json"

MakeBody = Callable[[], Body]


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """How this user reaches registries. ``key``: the file of the ed25519 key."""

    key: Path
    credentials: Credentials = field(default_factory=Credentials)
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    resolver: Resolve = resolve

    @classmethod
    def of_user(cls, key: Path, home: Path) -> RegistryAccess:
        """As the environment and the user's files say now. ``home``: the folder of our own state."""
        return cls(key, Credentials.load(credential_files(home, os.environ), os.environ))


def origin_of(name: ModelName, *, insecure: bool) -> Origin:
    """Where a model's registry is. Raises SourceError for plain http that was not allowed."""
    if name.scheme == "http" and not insecure:
        raise SourceError("insecure protocol http")
    scheme = "http" if insecure and name.scheme == "https" else name.scheme
    return Origin.of(f"{scheme}://{name.host}")


@contextlib.contextmanager
def connected(
    name: ModelName, access: RegistryAccess, cancelled: threading.Event, *, insecure: bool
) -> Iterator[RegistryClient]:
    """The repository that a model's name means, for one pull or push; setting ``cancelled`` ends all its waits."""
    origin = origin_of(name, insecure=insecure)
    named = (origin, *access.credentials.hosts_of(origin))
    with RegistrySession(cancelled, access.patience, named=named, resolver=access.resolver) as session:
        yield RegistryClient(name, origin, session, Authorization(origin, session, access.key, access.credentials))


class RegistryClient:
    """Used by several threads at once."""

    def __init__(self, name: ModelName, origin: Origin, session: RegistrySession, authorization: Authorization) -> None:
        self.name = name
        self.origin = origin
        self.session = session
        self._authorization = authorization
        self._base = f"{origin}/v2/{name.namespace}/{name.model}"

    def url(self, path: str) -> str:
        return f"{self._base}/{path}"

    def manifest(self) -> bytes:
        """The bytes as they are served. Raises Missing when there is no such model."""
        with self.get(self.url(f"manifests/{self.name.tag}"), {"Accept": _ACCEPTED}) as response:
            return response.body(MAX_JSON)

    def put_manifest(self, raw: bytes, media_type: str) -> None:
        url = self.url(f"manifests/{self.name.tag}")
        with self.request("PUT", url, {"Content-Type": media_type}, lambda: raw) as response:
            check(response)

    def has_blob(self, digest: Digest) -> bool:
        with self._following("HEAD", self.url(f"blobs/{digest}"), {}) as response:
            if response.status == 404:
                return False
            check(response)
        return True

    def open_blob(self, digest: Digest, start: int, end: int | None) -> RegistryResponse:
        """A blob's bytes from ``start`` to ``end`` (the last one); all of it when ``end`` is None."""
        return self.get(self.url(f"blobs/{digest}"), {} if end is None else {"Range": f"bytes={start}-{end}"})

    def get(self, url: str, headers: Mapping[str, str]) -> RegistryResponse:
        """GET, redirects followed. Raises Missing for 404, Refused for other errors of HTTP."""
        response = self._following("GET", url, headers)
        check(response)
        return response

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: MakeBody | None = None
    ) -> RegistryResponse:
        """One request with our credentials, if ``url`` may see them; its redirects are the caller's business."""
        for last in (False, True):
            tried = self._authorization.header(url)
            sent = {**(headers or {}), **({"Authorization": tried} if tried else {})}
            response = self.session.send(method, url, sent, body() if body else None)
            if response.status != 401 or Origin.of(url).party != self.origin.party:
                break
            response.close()
            if last:
                raise AccessDenied(DENIED)
            self._authorization.answer(", ".join(response.headers.get_all("WWW-Authenticate", [])), tried)
        return response

    def _following(self, method: str, url: str, headers: Mapping[str, str]) -> RegistryResponse:
        for _ in range(MAX_REDIRECTS + 1):
            response = self.request(method, url, headers)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            url = redirected(url, location)
        raise SourceError(f"{self.origin.address} redirects more than {MAX_REDIRECTS} times")


def check(response: RegistryResponse) -> None:
    """Raises Missing for 404 and Refused for other statuses from 300 on; the response is closed then."""
    if response.status < 300:
        return
    body = response.body(MAX_ERROR).decode("utf-8", "replace").strip()
    if response.status == 404:
        raise NotInRegistry("file does not exist")
    raise RegistryRefused(response.status, body[:_SHOWN], _retry_after(response.headers.get("Retry-After", "")))


def _retry_after(text: str) -> float | None:
    """Seconds, from a number or a date."""
    text = text.strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
