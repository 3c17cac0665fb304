"""The host without Jupyter: listening sockets, and who is admitted by the rules of :mod:`ollama_nb.server.access`."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tornado import httpserver, web
from tornado.iostream import IOStream

from ollama_nb.errors import OllamaError
from ollama_nb.net import is_loopback_socket
from ollama_nb.runtime import CHALLENGE
from ollama_nb.server import access, limits
from ollama_nb.server.access import HostKind, Keys, Origins
from ollama_nb.server.handler import SETTING, OllamaHandler, PlainResponse
from ollama_nb.server.keys import ANY_KEY, KeyRing
from ollama_nb.server.routes import url_specs
from ollama_nb.server.state import ServerState
from ollama_nb.settings import Host

_ACCESS = "ollama_nb_access"  # key of the AccessRules in the application's settings
_log = logging.getLogger("ollama_nb.server")
_REASONS = {
    errno.EADDRINUSE: "address already in use",
    errno.EACCES: "permission denied",
    errno.EADDRNOTAVAIL: "cannot assign requested address",
}
_NO_SUCH_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BUSY_BODY = b'{"error":"too many connections are open, please try again","code":"busy"}'
_TOO_MANY_CONNECTIONS = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\nRetry-After: 1\r\n"
    + (b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY))
)


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The rules of one listener. ``loopback``: it is bound to loopback addresses only, so Host headers are checked."""

    origins: Origins = field(default_factory=Origins.parse)
    keys: KeyRing = field(default_factory=KeyRing)
    loopback: bool = True


class StandaloneHandler(OllamaHandler):
    """Admits requests by Ollama's rules for Origin and Host, then by API keys if there are any."""

    async def admit(self) -> None:
        rules: AccessRules = self.settings[_ACCESS]
        self._check_origin(rules.origins)
        if rules.loopback:
            self._check_host()
        rules.keys.check(self.request.headers, self.route.scope if self.route else ANY_KEY)

    def prove(self, challenge: str) -> str:
        rules: AccessRules = self.settings[_ACCESS]
        return rules.keys.prove(challenge)

    def _check_origin(self, origins: Origins) -> None:
        origin, host = self.request.headers.get("Origin"), self.request.headers.get("Host", "")
        if not origin or access.same_origin(origin, host):
            return
        if not origins.allow(origin):
            raise PlainResponse(403)
        if self.request.method == "OPTIONS":
            raise PlainResponse(204, headers=access.preflight_headers(origin, origins))
        for name, value in access.cors_headers(origin, origins).items():
            self.set_header(name, value)

    def _check_host(self) -> None:
        kind = access.host_kind(self.request.headers.get("Host", ""), socket.gethostname(), is_own_address)
        if kind is HostKind.FOREIGN:
            raise PlainResponse(403)
        if kind is HostKind.NAME and self.request.method == "OPTIONS":
            raise PlainResponse(204)


@functools.lru_cache(maxsize=256)
def is_own_address(address: access.Address) -> bool:
    """Whether an address belongs to an interface of this machine; sockets can be bound to no others."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def application(state: ServerState, rules: AccessRules, log: Callable[[web.RequestHandler], None]) -> web.Application:
    """All routes at the root, with these rules. ``log`` is called at the end of each request."""
    settings = {SETTING: state, _ACCESS: rules}
    return web.Application(url_specs("", StandaloneHandler), log_function=log, **settings)  # type: ignore[arg-type]


class BoundedServer(httpserver.HTTPServer):
    """Refuses clients while it has ``limits.MAX_CONNECTIONS`` connections."""

    _open = 0

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if self._open >= limits.MAX_CONNECTIONS:
            with contextlib.suppress(OSError):
                refuse(stream.socket)
            stream.close()
            return
        self._open += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self._open -= 1
        super().on_close(server_conn)


def listen(
    state: ServerState, sockets: Sequence[socket.socket], *, keys: Keys | KeyRing, origins: tuple[str, ...] = ()
) -> httpserver.HTTPServer:
    """Serve on bound sockets. Raises BadRequest for invalid ``origins``."""
    ring = keys if isinstance(keys, KeyRing) else KeyRing(keys)
    rules = AccessRules(Origins.parse(origins), ring, loopback=all(map(is_loopback_socket, sockets)))
    server = BoundedServer(application(state, rules, log_request), idle_connection_timeout=limits.IDLE_SECONDS)
    server.add_sockets(sockets)
    return server


def log_request(handler: web.RequestHandler) -> None:
    """Log one line per request, without the query, which could hold secrets, and none for a challenge."""
    request = handler.request
    if CHALLENGE in request.headers:
        return
    request_id = handler.id if isinstance(handler, OllamaHandler) else ""
    _log.info(
        "%s %s %s %.3fs %s", request.method, request.path, handler.get_status(), request.request_time(), request_id
    )


def bind(host: Host) -> list[socket.socket]:
    """Listening sockets, one for each address of the host. Raises OllamaError with Go's error text."""
    sockets: list[socket.socket] = []
    port, failed = host.port, None
    try:
        for family, address in _resolve(host):
            try:
                sockets.append(ListeningSocket(socket.create_server((address, port), family=family)))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                failed = error  # such as ::1 on a machine without IPv6
                continue
            port = sockets[-1].getsockname()[1]  # port 0: all addresses share the first one's port
        if failed and not sockets:
            raise failed
    except OSError as error:
        for opened in sockets:
            opened.close()
        reason = _REASONS.get(error.errno or 0, error.strerror)
        raise OllamaError(f"listen tcp {host.address}: bind: {reason}") from None
    return sockets


def _resolve(host: Host) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host.host or None, host.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise OllamaError(f"listen tcp: lookup {host.host}: no such host") from None
    return list(dict.fromkeys((entry[0], str(entry[4][0])) for entry in found))


def addresses(sockets: Sequence[socket.socket]) -> list[str]:
    """``host:port`` of each socket."""
    return [Host(host=s.getsockname()[0], port=s.getsockname()[1]).address for s in sockets]


class ListeningSocket(socket.socket):
    """A listening socket with one file descriptor in reserve, to refuse clients when there is no other.

    Without it, such clients wait until they time out, and each turn of the event loop logs a traceback.
    """

    def __init__(self, bound: socket.socket) -> None:
        """Take over the descriptor of ``bound``, which listens already."""
        super().__init__(bound.family, bound.type, bound.proto, bound.detach())
        self.setblocking(False)
        self._reserve = _reserve()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a client. Raises BlockingIOError, as if no client were waiting, after one was refused with 503."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
            self._refuse_client()
            raise BlockingIOError(errno.EAGAIN, "no file descriptor is left") from error

    def _refuse_client(self) -> None:
        self._release_reserve()
        with contextlib.suppress(OSError), super().accept()[0] as client:
            client.setblocking(False)
            refuse(client)
        self._reserve = _reserve()

    def _release_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
        self._reserve = -1

    def close(self) -> None:
        self._release_reserve()
        super().close()


def refuse(client: socket.socket) -> None:
    """Tell the client of a non-blocking socket that there are too many connections. Raises OSError."""
    with contextlib.suppress(BlockingIOError):
        client.recv(1 << 16)  # with unread data, close() would discard the reply
    client.send(_TOO_MANY_CONNECTIONS)
    client.shutdown(socket.SHUT_WR)


def _reserve() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
