"""The standalone server's life: bind, listen, serve, drain, unload everything, end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence

from ollama_nb import runtime
from ollama_nb.errors import BadRequest, OllamaError, StoreError
from ollama_nb.net import is_loopback_socket
from ollama_nb.server.access import Keys
from ollama_nb.server.endpoints import OLLAMA_API_VERSION
from ollama_nb.server.keys import KeyFile, KeyRing
from ollama_nb.server.listening import Listening
from ollama_nb.server.standalone import listen
from ollama_nb.server.state import ServerState
from ollama_nb.service.service import Service
from ollama_nb.settings import Host, Settings

DRAIN_SECONDS = 5.0
_REASONS = {
    errno.EADDRINUSE: "address already in use",
    errno.EACCES: "permission denied",
    errno.EADDRNOTAVAIL: "cannot assign requested address",
}
_NO_SUCH_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_log = logging.getLogger("ollama_nb.server")


def bind(host: Host) -> list[socket.socket]:
    """Listening sockets, one per address of the host. Raises OllamaError worded as Go words it."""
    sockets: list[socket.socket] = []
    port, failed = host.port, None
    try:
        for family, address in _resolve(host):
            try:
                sockets.append(Listening(socket.create_server((address, port), family=family)))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                failed = error  # such as ::1 on a machine without IPv6
                continue
            port = sockets[-1].getsockname()[1]  # port 0: all addresses share the one that was found first
        if failed and not sockets:
            raise failed
    except OSError as error:
        for made in sockets:
            made.close()
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
    return [Host(host=s.getsockname()[0], port=s.getsockname()[1]).address for s in sockets]


class Stop:
    """SIGINT and SIGTERM as an event; a second one cuts the drain short."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.event = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self.event.is_set():
            self._state.cut()
        self.event.set()


async def run(
    settings: Settings,
    sockets: Sequence[socket.socket],
    *,
    keys: Keys | KeyRing,
    meanwhile: Callable[[ServerState, asyncio.Event], Awaitable[None]] | None = None,
) -> None:
    """Serve until a signal comes or ``meanwhile`` sets the event; then drain, unload every model and return."""
    service = Service(settings)
    state = ServerState(service)
    stop = Stop(state)
    server = listen(state, sockets, keys=keys, origins=settings.origins)
    side = asyncio.ensure_future(meanwhile(state, stop.event)) if meanwhile else None
    try:
        await service.start()
        for address in addresses(sockets):
            _log.info("Listening on %s (version %s)", address, OLLAMA_API_VERSION)
        await stop.event.wait()
        server.stop()
        await state.drain(DRAIN_SECONDS)
    finally:
        if side is not None:
            side.cancel()
            await asyncio.wait({side})
        await service.close()
        await server.close_all_connections()


async def serve(settings: Settings) -> None:
    """``ollama serve``: listen on ``settings.host`` until SIGINT or SIGTERM.

    Raises OllamaError when the address cannot be had, a setting is wrong, or a key is required and there is none.
    """
    file = KeyFile(settings.home)
    if settings.require_key and not file.read():
        raise BadRequest(
            "OLLAMA_NB_REQUIRE_KEY is set and there is no API key: make one with `ollama-nb keys add NAME`"
        )
    if settings.host.warning:
        print(f"Warning: {settings.host.warning}", file=sys.stderr)
    own = secrets.token_urlsafe(32)
    keys = KeyRing(Keys(own), file)
    closed = keys.closed
    sockets = bind(settings.host)
    if not closed and not all(map(is_loopback_socket, sockets)):
        print(
            f"Warning: everyone who can reach {settings.host.address} can use this server: no API key exists. Make one "
            "with `ollama-nb keys add NAME`, or set OLLAMA_HOST=127.0.0.1 to keep the server to this machine.",
            file=sys.stderr,
        )
    with _told(settings, sockets, own):
        await run(settings, sockets, keys=keys)


@contextlib.contextmanager
def _told(settings: Settings, sockets: Sequence[socket.socket], key: str) -> Iterator[None]:
    """Tell this user's own clients the key that lets them in whatever API keys there are."""
    host = dataclasses.replace(settings.host, port=sockets[0].getsockname()[1])
    file = runtime.serve_file(settings.home, host.port)
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        runtime.write(file, host.url, key)
    except (OSError, StoreError) as error:
        _log.warning("clients of this user need an API key, too, if there is one: %s", error)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def set_up_logging(settings: Settings) -> None:
    """Log to standard error: OLLAMA_DEBUG=1 and 2 say more."""
    level = logging.DEBUG if settings.debug else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if settings.debug < 2:
        logging.getLogger("asyncio").setLevel(logging.WARNING)
