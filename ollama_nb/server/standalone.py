"""The host without Jupyter: who is admitted, by the rules of ``access``."""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tornado import httpserver, web

from ollama_nb.errors import Unauthorized
from ollama_nb.net import is_loopback_socket
from ollama_nb.server import access
from ollama_nb.server.access import HostKind, Keys, Origins
from ollama_nb.server.handlers import SETTING, Answer, Endpoint
from ollama_nb.server.keys import KeyRing
from ollama_nb.server.routes import routes
from ollama_nb.server.scopes import scope_of
from ollama_nb.server.state import ServerState

_ACCESS = "ollama_nb_access"
_log = logging.getLogger("ollama_nb.server")


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one listener. ``loopback``: it is bound to loopback addresses only, so Host names are checked."""

    origins: Origins = field(default_factory=Origins.parse)
    keys: KeyRing = field(default_factory=KeyRing)
    loopback: bool = True


class Standalone(Endpoint):
    """Ollama's own rules: Origin, then Host, then our key, if there is one."""

    async def admit(self) -> None:
        rules: Access = self.settings[_ACCESS]
        self._check_origin(rules.origins)
        if rules.loopback:
            self._check_host()
        try:
            rules.keys.check(self.request.headers, scope_of(self.request.method or "", self.request.path))
        except Unauthorized:
            self.set_header("WWW-Authenticate", "Bearer")
            raise

    def _check_origin(self, origins: Origins) -> None:
        origin, host = self.request.headers.get("Origin"), self.request.headers.get("Host", "")
        if not origin or access.same_origin(origin, host):
            return
        if not origins.allow(origin):
            raise Answer(403)
        if self.request.method == "OPTIONS":
            raise Answer(204, headers=access.preflight_headers(origin, origins))
        for name, value in access.cors_headers(origin, origins).items():
            self.set_header(name, value)

    def _check_host(self) -> None:
        kind = access.host_kind(self.request.headers.get("Host", ""), socket.gethostname(), is_own_address)
        if kind is HostKind.FOREIGN:
            raise Answer(403)
        if kind is HostKind.NAME and self.request.method == "OPTIONS":
            raise Answer(204)


@functools.lru_cache(maxsize=256)
def is_own_address(address: access.Address) -> bool:
    """True for an address of one of this machine's interfaces: only to those can a socket be bound."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def application(state: ServerState, rules: Access, log: Callable[[web.RequestHandler], None]) -> web.Application:
    """All routes at the root, under those rules; ``log`` is called at the end of each request."""
    settings = {SETTING: state, _ACCESS: rules}
    return web.Application(routes("", Standalone), log_function=log, **settings)  # type: ignore[arg-type]


def listen(
    state: ServerState, sockets: Sequence[socket.socket], *, keys: Keys | KeyRing, origins: tuple[str, ...] = ()
) -> httpserver.HTTPServer:
    """Serve on bound sockets. Raises BadRequest for origins that are none."""
    ring = keys if isinstance(keys, KeyRing) else KeyRing(keys)
    rules = Access(Origins.parse(origins), ring, loopback=all(map(is_loopback_socket, sockets)))
    server = httpserver.HTTPServer(application(state, rules, log_request))
    server.add_sockets(sockets)
    return server


def log_request(handler: web.RequestHandler) -> None:
    """One line per request. No query: it could hold what nobody should read."""
    request = handler.request
    request_id = handler.id if isinstance(handler, Endpoint) else ""
    _log.info(
        "%s %s %s %.3fs %s", request.method, request.path, handler.get_status(), request.request_time(), request_id
    )
