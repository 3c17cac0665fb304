"""Rules of access to the server by the headers Host, Origin and Authorization. Pure functions; handlers apply them.

- Host: on loopback addresses only local names are accepted, as a protection against DNS rebinding.
- Origin: a page of an origin that is not allowed is refused, whatever it requests.
- Key: if there is a key, every request needs one.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from ollama_nb.errors import BadRequest
from ollama_nb.runtime import key_hash, prove

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOCAL_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for host in ("localhost", "127.0.0.1", "0.0.0.0")
        for scheme in ("http", "https")
        for port in ("", ":*")
    ),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
_ORIGIN_SCHEMES = (
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
)
_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_STAINLESS = ("arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version",
              "poll-helper", "retry-count", "runtime", "runtime-version", "timeout")  # fmt: skip
_HEADERS = (
    "Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "OpenAI-Beta",
    *(f"x-stainless-{name}" for name in _STAINLESS),
    # Not in Ollama's list: headers of Anthropic's browser clients and of our additions.
    "x-api-key", "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access", "X-Request-Id",
    "X-Ollama-Strict", "X-Ollama-Run-Record", "X-Ollama-Client", "X-Timings",
)  # fmt: skip
_PRIVATE = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
KEY_PREFIX = "onb_"  # of the text of every API key, so that scanners of secrets recognise it
KEY_REQUIRED = "unauthorized: this server requires an API key; set OLLAMA_API_KEY to a valid one"
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_BRACKETED = re.compile(r"\[([^\]]*)\](?::\d*)?")
_BEARER = re.compile(r"(?:bearer|token)\s+(\S+)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Origins:
    """Allowed origins, each with at most one ``*``."""

    patterns: tuple[str, ...]

    @classmethod
    def parse(cls, extra: tuple[str, ...] = ()) -> Origins:
        """The origins of OLLAMA_ORIGINS, then the built-in local ones. Raises BadRequest for an invalid entry."""
        for entry in extra:
            if entry.count("*") > 1:
                raise BadRequest(f'OLLAMA_ORIGINS: more than one "*" in "{entry}"')
            if "*" not in entry and not entry.startswith(_ORIGIN_SCHEMES):
                raise BadRequest(f'OLLAMA_ORIGINS: "{entry}" must start with one of {", ".join(_ORIGIN_SCHEMES)}')
        return cls((*extra, *_LOCAL_ORIGINS))

    @property
    def allow_all(self) -> bool:
        return "*" in self.patterns

    def allow(self, origin: str) -> bool:
        return any(_matches(pattern, origin) for pattern in self.patterns)


def _matches(pattern: str, text: str) -> bool:
    start, star, end = pattern.partition("*")
    if not star:
        return text == pattern
    return len(text) >= len(start) + len(end) and text.startswith(start) and text.endswith(end)


def same_origin(origin: str, host: str) -> bool:
    """Whether a page's origin is the server that the request goes to."""
    return origin in (f"http://{host}", f"https://{host}")


def cors_headers(origin: str, origins: Origins) -> dict[str, str]:
    """The CORS headers of a reply to an allowed origin."""
    if origins.allow_all:
        return {"Access-Control-Allow-Origin": "*"}
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def preflight_headers(origin: str, origins: Origins) -> dict[str, str]:
    return {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": ",".join(_HEADERS),
        "Access-Control-Max-Age": "43200",
        **cors_headers(origin, origins),
        "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }


class HostKind(Enum):
    """What a Host header names: a name or an address of this machine or a private network, or another host."""

    NAME = auto()
    ADDRESS = auto()
    FOREIGN = auto()


def host_kind(header: str, machine: str, is_ours: Callable[[Address], bool]) -> HostKind:
    """Classify a Host header. ``machine`` is this machine's name; ``is_ours`` is true for its addresses."""
    host = _without_port(header.strip()).lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return HostKind.NAME if _is_local_name(host, machine.lower()) else HostKind.FOREIGN
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    ours = address.is_loopback or address.is_unspecified or any(address in network for network in _PRIVATE)
    return HostKind.ADDRESS if ours or is_ours(address) else HostKind.FOREIGN


def _is_local_name(host: str, machine: str) -> bool:
    if host in ("", "localhost"):
        return True
    return bool(_HOST_NAME.fullmatch(host)) and (
        host == machine or host.endswith((".localhost", ".local", ".internal"))
    )


def _without_port(host: str) -> str:
    if host.startswith("["):
        bracketed = _BRACKETED.fullmatch(host)
        return bracketed[1] if bracketed else host
    name, colon, port = host.rpartition(":")
    return name if colon and ":" not in name and (not port or port.isdecimal()) else host


class Keys:
    """Keys with access to everything, kept as hashes and compared in constant time."""

    def __init__(self, *keys: str) -> None:
        self._hashes = tuple(key_hash(key) for key in keys if key)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accept(self, headers: Mapping[str, str]) -> bool:
        """Whether the headers hold one of the keys, as a bearer token or in ``x-api-key``."""
        offered = offered_key(headers)
        if not offered:
            return False
        hashed = key_hash(offered)
        return any(hmac.compare_digest(hashed, known) for known in self._hashes)

    def prove(self, challenge: str) -> str:
        """The proof for a client that this server has its key; empty without a key."""
        return prove(self._hashes[0], challenge) if self._hashes else ""


def offered_key(headers: Mapping[str, str]) -> str:
    """The key in the headers; empty if they hold no key."""
    bearer = _BEARER.fullmatch(headers.get("Authorization", ""))
    return bearer[1] if bearer else headers.get("x-api-key", "").strip()


def client_of(headers: Mapping[str, str], address: str) -> str:
    """Return on whose behalf a request is made, for fair shares of a model.

    The holder of an API key is one client. Otherwise a client is a process that sends ``X-Ollama-Client``, such as a
    notebook's kernel, or else all requests from one address.
    """
    key = offered_key(headers)
    if key.startswith(KEY_PREFIX):
        return f"key {key_hash(key).hex()[:16]}"
    return f"{address} {headers.get('X-Ollama-Client', '')[:64]}"
