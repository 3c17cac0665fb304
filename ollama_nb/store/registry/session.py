"""HTTP connections of one pull or push: resolving and checking addresses, proxies, TLS, keep-alive, cancellation.

A host that the user named may have any address. A host that only a response named (a redirect) must have addresses
within the session's :class:`Reach`: its name is resolved once, the addresses are checked, and the socket is connected
to a checked address, so that DNS rebinding has no effect. Behind a proxy, the proxy resolves names and only literal
addresses can be checked.

This is built on ``http.client`` because the code must choose the address that a socket connects to and must be able to
abort any wait within a moment. Redirects, decompression and authorization are not handled here.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from ollama_nb import __version__, net
from ollama_nb.errors import Cancelled, SourceError
from ollama_nb.store.registry.errors import RegistryConnectionLost, RegistryUnreachable, RetryPolicy
from ollama_nb.store.registry.urls import Origin, target_of

POLL_INTERVAL = 0.1
"""Seconds between two checks for cancellation."""

_PRIVATE = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
_METADATA = tuple(ipaddress.ip_network(text) for text in ("fd00:ec2::/32", "fd20:ce::254/128"))  # clouds' services
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Sequence[str]]
Body = bytes | Iterable[bytes] | None
_DRAINED = 64 << 10
"""Bytes; a response with at most this many bytes left is read to the end to keep its connection."""
_OTHER_NAME = "use a name that the certificate has"
_OTHER_TIME = "the registry needs a new certificate, or this machine's clock is wrong"
_TLS_ADVICE = {9: _OTHER_TIME, 10: _OTHER_TIME, 62: _OTHER_NAME, 64: _OTHER_NAME}
"""What to do, by OpenSSL's ``X509_V_ERR`` numbers: not yet valid, expired, another host name or address."""


class Reach(Enum):
    """The addresses, besides public ones, that a host may have. Link-local and metadata addresses are in ANY only.

    A registry that the user named by a loopback or private address may redirect to addresses of the same kind: that is
    how a registry and its storage are set up on premises. A registry with any other name may redirect to public ones.
    """

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    ANY = "any"  # for hosts that the user named

    def admits(self, address: str) -> bool:
        """Whether a host may have this address."""
        return self is Reach.ANY or is_public(address) or (self is not Reach.PUBLIC and local_reach(address) is self)


_Key = tuple[Origin, Reach]


def local_reach(address: str) -> Reach:
    """The kind of an IP address: LOOPBACK, PRIVATE, or PUBLIC for all others. IPv4 within IPv6 counts as IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return Reach.LOOPBACK
    return Reach.PRIVATE if _within(ip, _PRIVATE) and not _within(ip, _METADATA) else Reach.PUBLIC


def redirect_reach(registry: Origin) -> Reach:
    """The addresses that a registry may redirect to, by the address that the user named it by."""
    if registry.is_loopback:
        return Reach.LOOPBACK
    address = literal_address(registry.host)
    return local_reach(address) if address else Reach.PUBLIC


def literal_address(host: str) -> str:
    """The address that a host is written as, empty for a name. Resolvers also accept 127.1 and 0x7f000001."""
    try:
        return str(ipaddress.ip_address(host)) if ":" in host else socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return ""


def _within(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Iterable[Any]) -> bool:
    return any(ip in network for network in networks if network.version == ip.version)


def resolve(host: str, port: int) -> Sequence[str]:
    """Resolve a host name; addresses are in the system's order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Return False for private, loopback, link-local and other special addresses, including those embedded in IPv6."""
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
    """Return the proxy for an origin and the headers with its credentials; None for a direct connection."""
    proxy = net.proxy_for(urlsplit(str(origin)), os.environ)
    if proxy is None:
        return None
    try:
        port = proxy.port or (443 if proxy.scheme == "https" else 3128)
    except ValueError as error:
        raise SourceError(f"invalid proxy address: {error}") from error
    address = net.host_and_port(proxy.hostname or "", port)
    return Origin.of(f"{proxy.scheme}://{address}"), net.proxy_headers(proxy)


def check_proxied(origin: Origin, reach: Reach) -> None:
    """Check a host that a proxy will resolve. Raises SourceError for a literal address out of reach and plain http."""
    address = literal_address(origin.host)
    _admitted(origin, reach, [address] if address else [])
    if not address:
        _check_secure(origin)


def _admitted(origin: Origin, reach: Reach, addresses: Sequence[str]) -> Sequence[str]:
    """The addresses that may be connected to; plain http leads to local ones only, unless the user named the host.

    Raises SourceError if no address is left.
    """
    if reach is Reach.ANY:
        return addresses
    admitted = [address for address in addresses if reach.admits(address)]
    if addresses and not admitted:
        raise SourceError(
            f"refused to connect to {origin.address}: a registry may not redirect into a private network "
            '(to allow it, add {"hosts": {REGISTRY: {"may_use": [HOST]}}} to ~/.ollama/nb/registries.json)'
        )
    if all(map(is_public, admitted)):
        _check_secure(origin)
    return admitted if origin.scheme == "https" else [one for one in admitted if not is_public(one)]


def _check_secure(origin: Origin) -> None:
    if origin.scheme != "https":
        raise SourceError(
            f"refused to connect to {origin.address}: a registry may not redirect to another host over plain http"
        )


def dial(
    origin: Origin, *, reach: Reach, seconds: float, stopped: threading.Event, resolver: Resolve = resolve
) -> socket.socket:
    """Open a connection to an address within ``reach``. Raises RegistryUnreachable, SourceError or Cancelled."""
    addresses = _admitted(origin, reach, _resolve_in_thread(origin, resolver, seconds, stopped))
    failure = OSError("no addresses")
    for address in addresses:
        try:
            return _connect(address, origin.port, seconds, stopped)
        except OSError as error:
            failure = error
    reason = "no answer" if isinstance(failure, TimeoutError) else failure.strerror or str(failure)
    raise RegistryUnreachable(f"cannot reach {origin.address}: {reason}")


def _resolve_in_thread(origin: Origin, resolver: Resolve, seconds: float, stopped: threading.Event) -> Sequence[str]:
    """Resolve in a separate thread, because ``getaddrinfo`` cannot be interrupted."""
    found: list[Sequence[str]] = []
    failures: list[OSError | UnicodeError] = []
    ended = threading.Event()

    def run() -> None:
        try:
            found.append(resolver(origin.host, origin.port))
        except (OSError, UnicodeError) as error:
            failures.append(error)
        ended.set()

    threading.Thread(target=run, name="ollama-nb-resolve", daemon=True).start()
    deadline = time.monotonic() + seconds
    while not ended.wait(POLL_INTERVAL / 4):
        _raise_if_stopped(stopped)
        if time.monotonic() > deadline:
            raise RegistryUnreachable(f"cannot reach {origin.address}: the name server does not answer")
    if failures:
        reason = getattr(failures[0], "strerror", None) or str(failures[0])
        raise RegistryUnreachable(f"cannot reach {origin.address}: {reason}")
    return found[0]


def _connect(address: str, port: int, seconds: float, stopped: threading.Event) -> socket.socket:
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
    while not poll.poll(POLL_INTERVAL * 1000):
        _raise_if_stopped(stopped)
        if time.monotonic() > deadline:
            raise TimeoutError


def _raise_if_stopped(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise Cancelled


class RegistrySession:
    """The connections of one pull or push, shared by its threads.

    Setting ``cancelled`` aborts every wait, from any thread. ``trusted``: the hosts that the user named. All others
    are within ``reach``, which shrinks to public addresses when the session contacts a public one of them: what a
    public host names must never be in a private network.
    """

    def __init__(
        self,
        cancelled: threading.Event,
        retry_policy: RetryPolicy | None = None,
        *,
        trusted: Iterable[Origin] = (),
        reach: Reach = Reach.PUBLIC,
        resolver: Resolve = resolve,
    ) -> None:
        self.retry_policy = retry_policy or RetryPolicy()
        self.stopped = threading.Event()
        self._trusted = {(origin.host, origin.port) for origin in trusted} | {
            (o.canonical.host, o.port) for o in trusted
        }
        self._reach = reach
        self._resolver = resolver
        self._tls = ssl.create_default_context()
        self._lock = threading.Lock()
        self._idle: dict[_Key, list[_Connection]] = {}
        self._live: set[_Connection] = set()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(cancelled,), name="ollama-nb-cancel", daemon=True)
        self._watcher.start()

    def send(self, method: str, url: str, headers: Mapping[str, str], body: Body = None) -> RegistryResponse:
        """Send one request and return its response, whatever the status.

        Raises RegistryUnreachable, RegistryConnectionLost, SourceError or Cancelled.
        """
        origin = Origin.of(url)
        connection, reused = self._connection(origin)
        try:
            return self._exchange(connection, method, url, headers, body)
        except RegistryConnectionLost:
            # The server may have closed an idle connection.
            if not reused or not isinstance(body, bytes | None):
                raise
        connection, _ = self._connection(origin, fresh=True)
        return self._exchange(connection, method, url, headers, body)

    def cancel(self) -> None:
        """Abort all requests; their threads get Cancelled."""
        self.stopped.set()
        self.drop_connections()

    def drop_connections(self) -> None:
        """Close all connections; their threads get RegistryConnectionLost. New connections are allowed."""
        with self._lock:
            live, self._idle = list(self._live), {}
        for connection in live:
            connection.shut_down()

    def close(self) -> None:
        """Abort all requests and close all connections."""
        self._over.set()
        self.cancel()
        self._watcher.join()
        with self._lock:
            live, self._live = self._live, set()
        for connection in live:
            connection.close()

    def __enter__(self) -> RegistrySession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- internal ----------------------------------------------------------------------------------------------------

    def _watch(self, cancelled: threading.Event) -> None:
        while not self._over.wait(POLL_INTERVAL):
            if cancelled.is_set():
                self.cancel()
                return

    def _connection(self, origin: Origin, *, fresh: bool = False) -> tuple[_Connection, bool]:
        reach = Reach.ANY if (origin.host, origin.port) in self._trusted else self._reach
        with self._lock:
            idle = [] if fresh else self._idle.get((origin, reach), [])
            if idle:
                return idle.pop(), True
        connection = _Connection(self, origin, reach)
        with self._lock:
            self._live.add(connection)
        return connection, False

    def _exchange(
        self, connection: _Connection, method: str, url: str, headers: Mapping[str, str], body: Body
    ) -> RegistryResponse:
        try:
            with self.translated_errors(connection.origin):
                if self.stopped.is_set():
                    raise Cancelled
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    # A server that rejects a body midway has sent its response before it closed the connection.
                    connection.request(method, connection.target(url), body, _request_headers(headers, connection))
                raw = connection.getresponse()
        except BaseException:
            self.discard(connection)
            raise
        return RegistryResponse(raw.status, raw.headers, url, raw, connection, self, raw.length)

    @contextlib.contextmanager
    def translated_errors(self, origin: Origin) -> Iterator[None]:
        """Translate network errors into SourceError; after ``cancel`` all of them become Cancelled."""
        try:
            yield
        except (RegistryUnreachable, SourceError, Cancelled):
            if self.stopped.is_set():
                raise Cancelled from None
            raise
        except ssl.SSLCertVerificationError as error:
            raise SourceError(
                f"{origin.address} has a certificate that is not trusted: {error.verify_message.rstrip('.')} "
                f"({_TLS_ADVICE.get(error.verify_code, 'set SSL_CERT_FILE to a file of certificates to trust')})"
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self.stopped.is_set():
                raise Cancelled from None
            raise RegistryConnectionLost(_describe(origin, error, self.retry_policy.read_timeout)) from error

    def keep_alive(self, connection: _Connection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            if connection in self._live and not self.stopped.is_set():
                self._idle.setdefault((connection.origin, connection.reach), []).append(connection)

    def discard(self, connection: _Connection) -> None:
        """Close a connection."""
        with self._lock:
            self._live.discard(connection)
        connection.close()

    def leave_private_network(self) -> None:
        """From now on, only public hosts are contacted besides those that the user named."""
        self._reach = Reach.PUBLIC

    def dial(self, origin: Origin, reach: Reach) -> socket.socket:
        """Connect a socket to ``origin`` with the timeouts of the retry policy."""
        connected = dial(
            origin,
            reach=reach,
            seconds=self.retry_policy.connect_timeout,
            stopped=self.stopped,
            resolver=self._resolver,
        )
        connected.settimeout(self.retry_policy.read_timeout)
        return connected

    def secure(self, plain: socket.socket, host: str) -> ssl.SSLSocket:
        """Wrap a socket for TLS; the handshake is done later."""
        return self._tls.wrap_socket(plain, server_hostname=host.rstrip("."), do_handshake_on_connect=False)


@dataclass(slots=True)
class RegistryResponse:
    """A response; ``read`` it to its end or ``close`` it."""

    status: int
    headers: http.client.HTTPMessage
    url: str
    _raw: http.client.HTTPResponse
    _connection: _Connection
    _session: RegistrySession
    _left: int | None
    _over: bool = False

    @property
    def left(self) -> int | None:
        """The number of bytes that are still to be read; None if the registry has not given it."""
        return self._left

    def read(self, most: int) -> bytes:
        """Return 1 to ``most`` bytes, or empty bytes at the end. Raises RegistryConnectionLost for a truncated body."""
        if self._left == 0:
            return b""
        with self._session.translated_errors(self._connection.origin):
            data = self._raw.read1(most if self._left is None else min(most, self._left))
            if len(data) > most:  # a negative length of a chunk means "everything" to http.client
                raise RegistryConnectionLost(f"{self._connection.origin.address} sent an answer with an invalid length")
            if self._left is not None:
                # Counted here because some versions of http.client do not count and then block at the end.
                self._left -= len(data)
                if not data:
                    raise RegistryConnectionLost(
                        f"{self._connection.origin.address} ended its answer {self._left} bytes early"
                    )
        return data

    def body(self, limit: int, *, cut: bool = False) -> bytes:
        """Read the whole body.

        Raises SourceError if it takes too long, or if it is longer than ``limit`` bytes and is not to be ``cut``.
        """
        deadline = time.monotonic() + 2 * self._session.retry_policy.read_timeout
        data = bytearray()
        with contextlib.closing(self):
            while chunk := self.read(limit + 1 - len(data)):
                data += chunk
                if len(data) > limit and cut:
                    break
                if len(data) > limit:
                    raise SourceError(f"{self._connection.origin.address} sent more than {limit} bytes")
                if time.monotonic() > deadline:
                    raise RegistryConnectionLost(f"{self._connection.origin.address} takes too long to answer")
        return bytes(data[:limit])

    def close(self) -> None:
        """Release the connection: keep it alive if little is left to read, else close it. May be called twice."""
        if self._over:
            return
        self._over = True
        with contextlib.suppress(RegistryConnectionLost, Cancelled):
            while self._left and self._left <= _DRAINED and self.read(self._left):
                pass
        complete = self._left == 0 or self._raw.isclosed()
        self._raw.close()
        if complete and not self._raw.will_close:
            self._session.keep_alive(self._connection)
        else:
            self._session.discard(self._connection)

    def __enter__(self) -> RegistryResponse:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Connection(http.client.HTTPConnection):
    """A connection to one origin, through the proxy that the environment configures for it."""

    def __init__(self, session: RegistrySession, origin: Origin, reach: Reach) -> None:
        super().__init__(origin.host, origin.port)
        self.origin, self.reach = origin, reach
        self._session = session
        self.proxy: Origin | None = None
        self._sent_to_proxy: Mapping[str, str] = {}
        if found := proxy_of(origin):
            self.proxy, self._sent_to_proxy = found

    def connect(self) -> None:
        if self.proxy is None:
            self.sock = self._session.dial(self.origin, self.reach)
            if self.reach is not Reach.ANY and is_public(self.sock.getpeername()[0]):
                self._session.leave_private_network()
        else:
            if self.reach is not Reach.ANY:
                check_proxied(self.origin, self.reach)
                address = literal_address(self.origin.host)
                if not address or is_public(address):
                    self._session.leave_private_network()
            try:
                self.sock = self._session.dial(self.proxy, Reach.ANY)
            except RegistryUnreachable as error:
                raise RegistryUnreachable(
                    f"cannot reach {self.origin.address} through a proxy: {error.message}"
                ) from error
            if self.proxy.scheme == "https":
                self._handshake(self.proxy.host)
            if self.origin.scheme == "https":
                self._tunnel_through()
        if self.origin.scheme == "https":
            self._handshake(self.origin.host)

    def target(self, url: str) -> str:
        """Return the request target; a proxy for plain http requires the absolute URL."""
        absolute = self.proxy is not None and self.origin.scheme == "http"
        return f"{self.origin}{target_of(url)}" if absolute else target_of(url)

    @property
    def extra_headers(self) -> Mapping[str, str]:
        return self._sent_to_proxy if self.origin.scheme == "http" else {}

    def shut_down(self) -> None:
        """Shut the socket down, which wakes its reader or writer. May be called from any thread."""
        connected = self.sock
        if connected is not None:
            with contextlib.suppress(OSError):
                # SSLSocket.shutdown would discard the TLS state while another thread is reading.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def _handshake(self, host: str) -> None:
        self.sock = secured = self._session.secure(self.sock, host)
        try:
            secured.do_handshake()
        except ssl.SSLCertVerificationError:
            raise
        except ssl.SSLError as error:
            raise RegistryUnreachable(
                f"cannot establish TLS with {self.origin.address}: {error.reason or error} "
                "(if the registry supports plain http only, use `--insecure`)"
            ) from error

    def _tunnel_through(self) -> None:
        host = f"[{self.origin.host}]" if ":" in self.origin.host else self.origin.host
        at = f"{host}:{self.origin.port}"
        lines = [f"CONNECT {at} HTTP/1.1", f"Host: {at}"]
        lines += [f"{name}: {value}" for name, value in self._sent_to_proxy.items()]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        answer = http.client.HTTPResponse(self.sock, method="CONNECT")
        answer.begin()
        if answer.status != 200:
            raise RegistryUnreachable(
                f"the proxy {self.proxy and self.proxy.address} answered with status {answer.status}"
            )


def _request_headers(headers: Mapping[str, str], connection: _Connection) -> dict[str, str]:
    # Ranges and sizes refer to stored bytes, so the body must not be compressed.
    fixed = {"Host": connection.origin.address, "User-Agent": f"ollama-nb/{__version__}", "Accept-Encoding": "identity"}
    return {**fixed, **connection.extra_headers, **headers}


def _describe(origin: Origin, error: Exception, stall: float) -> str:
    if isinstance(error, TimeoutError):
        return f"{origin.address} has sent nothing for {stall:g} seconds"
    if isinstance(error, ssl.SSLError):
        return f"the TLS connection to {origin.address} failed: {error.reason or error}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return f"the connection to {origin.address} was lost: {text}"
