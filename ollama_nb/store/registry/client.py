"""Client of one repository: manifests and blobs over the Docker registry API (v2), which Ollama's registry shares."""

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
from ollama_nb.store.registry.session import Body, RegistryResponse, RegistrySession, Resolve, redirect_reach, resolve
from ollama_nb.store.registry.urls import Origin, redirected

MAX_ERROR = 64 << 10  # bytes of an error response that are read
MAX_REDIRECTS = 5
_MAX_REPORTED = 1000  # characters of an error response that are reported
_REDIRECTS = (301, 302, 303, 307, 308)
_ACCEPTED = f"{MANIFEST_TYPE}, application/vnd.oci.image.manifest.v1+json"

MakeBody = Callable[[], Body]


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """How the user accesses registries. ``key`` is the path of the ed25519 key."""

    key: Path
    credentials: Credentials = field(default_factory=Credentials)
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    resolver: Resolve = resolve

    @classmethod
    def of_user(cls, key: Path, home: Path) -> RegistryAccess:
        """Read the user's credential files and environment. ``home`` is the state folder of this program."""
        return cls(key, Credentials.load(credential_files(home, os.environ), os.environ))


def origin_of(name: ModelName, *, insecure: bool) -> Origin:
    """Return the origin of a model's registry. Raises SourceError for plain http without ``insecure``."""
    if name.scheme == "http" and not insecure:
        raise SourceError("insecure protocol http")
    scheme = "http" if insecure and name.scheme == "https" else name.scheme
    return Origin.of(f"{scheme}://{name.host}")


@contextlib.contextmanager
def open_registry(
    name: ModelName, access: RegistryAccess, cancelled: threading.Event, *, insecure: bool
) -> Iterator[RegistryClient]:
    """Open a client of the model's repository for one pull or push. Setting ``cancelled`` aborts all its requests."""
    origin = origin_of(name, insecure=insecure)
    trusted = (origin, *access.credentials.hosts_of(origin))
    with RegistrySession(
        cancelled,
        access.retry_policy,
        trusted=trusted,
        reach=redirect_reach(origin),
        resolver=access.resolver,
    ) as session:
        yield RegistryClient(name, origin, session, Authorization(origin, session, access.key, access.credentials))


class RegistryClient:
    """The requests of one pull or push; may be used by several threads."""

    def __init__(self, name: ModelName, origin: Origin, session: RegistrySession, authorization: Authorization) -> None:
        self.name = name
        self.origin = origin
        self.session = session
        self._authorization = authorization
        self._base = f"{origin}/v2/{name.namespace}/{name.model}"

    def url(self, path: str) -> str:
        """Return the URL of a path of the repository."""
        return f"{self._base}/{path}"

    def manifest(self) -> bytes:
        """Fetch the manifest, byte for byte. Raises NotInRegistry if the model does not exist."""
        with self.get(self.url(f"manifests/{self.name.tag}"), {"Accept": _ACCEPTED}) as response:
            return response.body(MAX_JSON)

    def put_manifest(self, raw: bytes, media_type: str) -> None:
        """Upload the manifest under the model's tag."""
        url = self.url(f"manifests/{self.name.tag}")
        with self.request("PUT", url, {"Content-Type": media_type}, lambda: raw) as response:
            check(response)

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the repository has a blob."""
        with self._request_following("HEAD", self.url(f"blobs/{digest}"), {}) as response:
            if response.status == 404:
                return False
            check(response)
        return True

    def open_blob(self, digest: Digest, start: int, end: int | None) -> RegistryResponse:
        """Request the bytes ``start`` to ``end`` (inclusive) of a blob, or the whole blob if ``end`` is None."""
        return self.get(self.url(f"blobs/{digest}"), {} if end is None else {"Range": f"bytes={start}-{end}"})

    def get(self, url: str, headers: Mapping[str, str]) -> RegistryResponse:
        """Send a GET request and follow redirects.

        Raises NotInRegistry for 404 and RegistryRefused for other HTTP errors.
        """
        response = self._request_following("GET", url, headers)
        check(response)
        return response

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: MakeBody | None = None
    ) -> RegistryResponse:
        """Send one request, with credentials if ``url`` may see them; a challenge is answered once.

        Redirects are returned to the caller.
        """
        for last in (False, True):
            tried = self._authorization.header(url)
            sent = {**(headers or {}), **({"Authorization": tried} if tried else {})}
            response = self.session.send(method, url, sent, body() if body else None)
            if response.status != 401 or Origin.of(url).canonical != self.origin.canonical:
                break
            response.close()
            if last:
                raise AccessDenied(DENIED)
            self._authorization.answer_challenge(", ".join(response.headers.get_all("WWW-Authenticate", [])), tried)
        return response

    def _request_following(self, method: str, url: str, headers: Mapping[str, str]) -> RegistryResponse:
        for _ in range(MAX_REDIRECTS + 1):
            response = self.request(method, url, headers)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            url = redirected(url, location)
        raise SourceError(f"{self.origin.address} redirects more than {MAX_REDIRECTS} times")


def check(response: RegistryResponse) -> None:
    """Raise NotInRegistry for 404 and RegistryRefused for other statuses from 300, and close the response."""
    if response.status < 300:
        return
    body = response.body(MAX_ERROR, cut=True).decode("utf-8", "replace").strip()
    if response.status == 404:
        raise NotInRegistry("file does not exist")
    raise RegistryRefused(response.status, body[:_MAX_REPORTED], _retry_after(response.headers.get("Retry-After", "")))


def _retry_after(text: str) -> float | None:
    """Parse a Retry-After header, seconds or a date, into seconds."""
    text = text.strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
