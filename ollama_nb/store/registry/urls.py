"""Which addresses a registry may send us to. Pure: nothing is resolved here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from ollama_nb import net
from ollama_nb.errors import SourceError

PORTS = {"http": 80, "https": 443}
_ALIASES = {"hf.co": "huggingface.co"}
"""Two names of one party: what asks for credentials under the one accepts them under the other."""
_URL = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?|[0-9a-f:.]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port; the host in lower case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Raises SourceError for anything that is not a plain http or https address."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise SourceError(f"invalid address {_safe(url)}: {error}") from error
        host = (parts.hostname or "").lower()
        if parts.scheme not in PORTS or not _URL.fullmatch(url) or not _HOST.fullmatch(host):
            raise SourceError(f"invalid address {_safe(url)}")
        if "@" in parts.netloc:
            raise SourceError(f"the address {_safe(url)} carries a name or a password, which is not allowed here")
        return cls(parts.scheme, host, PORTS[parts.scheme] if port is None else port)

    @property
    def is_loopback(self) -> bool:
        """The names and addresses that mean this machine."""
        return net.is_loopback(self.host)

    @property
    def party(self) -> Origin:
        """Equal for origins that are one party's under two names."""
        return Origin(self.scheme, _ALIASES.get(self.host, self.host), self.port)

    @property
    def address(self) -> str:
        """As it stands in a URL; the usual port is left out."""
        address = net.host_and_port(self.host, self.port)
        return address.removesuffix(f":{self.port}") if self.port == PORTS[self.scheme] else address

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


def target_of(url: str) -> str:
    """What stands in the first line of a request: path and query."""
    parts: SplitResult = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def redirected(url: str, location: str) -> str:
    """Where a response of ``url`` sends us. Raises SourceError for a step from https to http, and for other schemes."""
    try:
        found = urljoin(url, location).partition("#")[0]
    except ValueError as error:
        raise SourceError(f"{Origin.of(url).address} redirects to {_safe(location)!r}, which is no address") from error
    before, after = Origin.of(url), Origin.of(found)
    if before.scheme == "https" and after.scheme != "https":
        raise SourceError(f"{before.address} redirects from https to plain http ({after.address}): not followed")
    return found


def _safe(url: str) -> str:
    """For error texts: no credentials, no query with a signature in it, not endless."""
    return re.sub(r"(?<=://)[^/@]*@", "", url.partition("?")[0])[:200]
