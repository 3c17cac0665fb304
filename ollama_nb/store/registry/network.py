"""From an origin to a connected socket, by the rules of who may be reached.

A host that the user named may be anywhere. A host that only a response named must have public addresses: the name is
resolved here, its addresses are checked, and the socket is connected to a checked address, so that a second answer of
the name server changes nothing. Behind a proxy the proxy resolves, and only literal addresses can be checked.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from ollama_nb import net
from ollama_nb.errors import Cancelled, SourceError
from ollama_nb.store.registry.errors import Unreachable
from ollama_nb.store.registry.urls import Origin

STEP = 0.1
"""Seconds between two looks at whether the caller still wants it."""

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, the system's favourite first."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """False for private, loopback, link-local and other special addresses, also where IPv6 wraps them."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def proxy_of(origin: Origin) -> tuple[Origin, dict[str, str]] | None:
    """The proxy that the environment names for an origin, and the headers with its credentials; None for no proxy."""
    proxy = net.proxy_for(urlsplit(str(origin)), os.environ)
    if proxy is None:
        return None
    try:
        port = proxy.port or (443 if proxy.scheme == "https" else 3128)
    except ValueError as error:
        raise SourceError(f"invalid proxy address: {error}") from error
    address = net.host_and_port(proxy.hostname or "", port)
    return Origin.of(f"{proxy.scheme}://{address}"), net.proxy_headers(proxy)


def check_literal(origin: Origin) -> None:
    """Raises SourceError when the host is written as an address that is not public."""
    try:
        # Resolvers take short forms such as 127.1 and 0x7f000001 for addresses, too.
        public = is_public(origin.host if ":" in origin.host else socket.inet_ntoa(socket.inet_aton(origin.host)))
    except (OSError, ValueError):
        return  # a name
    if not public:
        raise _refused(origin)


def check_secure(origin: Origin) -> None:
    """Raises SourceError for plain http: that is allowed to hosts that the user named, at most."""
    if origin.scheme != "https":
        raise SourceError(
            f"refused to go to {origin.address}: a registry may not send us to another host in plain http"
        )


def dial(
    origin: Origin, *, named: bool, seconds: float, stopped: threading.Event, resolver: Resolve = resolve
) -> socket.socket:
    """A connected socket. ``named``: the user named this host. Raises Unreachable, SourceError or Cancelled."""
    addresses = _resolved(origin, resolver, seconds, stopped)
    if not named:
        addresses = [address for address in addresses if is_public(address)]
        if not addresses:
            raise _refused(origin)
        check_secure(origin)
    failure = OSError("no addresses")
    for address in addresses:
        try:
            return _connected(address, origin.port, seconds, stopped)
        except OSError as error:
            failure = error
    reason = "no answer" if isinstance(failure, TimeoutError) else failure.strerror or str(failure)
    raise Unreachable(f"cannot reach {origin.address}: {reason}")


def _refused(origin: Origin) -> SourceError:
    return SourceError(
        f"refused to go to {origin.address}: a registry may not send us into a private network "
        '(~/.ollama/nb/registries.json can allow it: {"hosts": {REGISTRY: {"may_use": [HOST]}}})'
    )


def _resolved(origin: Origin, resolver: Resolve, seconds: float, stopped: threading.Event) -> Sequence[str]:
    """In a thread of its own: a name server's silence cannot be interrupted, only left alone."""
    found: list[Sequence[str]] = []
    failures: list[OSError | UnicodeError] = []
    ended = threading.Event()

    def look() -> None:
        try:
            found.append(resolver(origin.host, origin.port))
        except (OSError, UnicodeError) as error:
            failures.append(error)
        ended.set()

    threading.Thread(target=look, name="ollama-nb-resolve", daemon=True).start()
    deadline = time.monotonic() + seconds
    while not ended.wait(STEP / 4):
        _check(stopped)
        if time.monotonic() > deadline:
            raise Unreachable(f"cannot reach {origin.address}: the name server does not answer")
    if failures:
        reason = getattr(failures[0], "strerror", None) or str(failures[0])
        raise Unreachable(f"cannot reach {origin.address}: {reason}")
    return found[0]


def _connected(address: str, port: int, seconds: float, stopped: threading.Event) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect_ex((address, port))
        _wait_writable(connection, seconds, stopped)
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        connection.close()
        raise
    return connection


def _wait_writable(connection: socket.socket, seconds: float, stopped: threading.Event) -> None:
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    while not poll.poll(STEP * 1000):
        _check(stopped)
        if time.monotonic() > deadline:
            raise TimeoutError


def _check(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise Cancelled
