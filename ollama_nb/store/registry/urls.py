"""Origins of URLs, and which redirects are allowed. Host names are not resolved here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from ollama_nb import net
from ollama_nb.errors import SourceError

PORTS = {"http": 80, "https": 443}
_ALIASES = {"hf.co": "huggingface.co"}
"""Two host names of one service: a challenge of the one may be answered to the other."""
_URL = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?|[0-9a-f:.]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host (lower case; IPv6 without brackets) and port of a URL."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Parse ``url``. Raises SourceError if it is not an http or https URL or contains credentials."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise SourceError(f"invalid address {_safe(url)}: {error}") from error
        host = (parts.hostname or "").lower()
        if parts.scheme not in PORTS or not _URL.fullmatch(url) or not _HOST.fullmatch(host):
            raise SourceError(f"invalid address {_safe(url)}")
        if "@" in parts.netloc:
            raise SourceError(f"the address {_safe(url)} contains a user name or a password, which is not allowed")
        return cls(parts.scheme, host, PORTS[parts.scheme] if port is None else port)

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine."""
        return net.is_loopback(self.host)

    @property
    def canonical(self) -> Origin:
        """The canonical origin: equal for two host names of the same service."""
        return Origin(self.scheme, _ALIASES.get(self.host, self.host), self.port)

    @property
    def address(self) -> str:
        """Host and port as in a URL; the default port is omitted."""
        address = net.host_and_port(self.host, self.port)
        return address.removesuffix(f":{self.port}") if self.port == PORTS[self.scheme] else address

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


def target_of(url: str) -> str:
    """Return path and query of a URL, as in the request line."""
    parts: SplitResult = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def redirected(url: str, location: str) -> str:
    """Resolve the ``Location`` of a response of ``url``.

    Raises SourceError for a redirect from https to http or to another scheme.
    """
    try:
        found = urljoin(url, location).partition("#")[0]
    except ValueError as error:
        raise SourceError(
            f"{Origin.of(url).address} redirects to {_safe(location)!r}, which is not a valid URL"
        ) from error
    before, after = Origin.of(url), Origin.of(found)
    if before.scheme == "https" and after.scheme != "https":
        raise SourceError(f"{before.address} redirects from https to plain http ({after.address}): not followed")
    return found


def _safe(url: str) -> str:
    """Shorten a URL for messages and remove credentials and the query, which may contain a signature."""
    return re.sub(r"(?<=://)[^/@]*@", "", url.partition("?")[0])[:200]
