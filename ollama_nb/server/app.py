"""The life of a standalone server: listen, serve until a signal comes, drain, unload all models, end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import faulthandler
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ollama_nb import runtime
from ollama_nb.errors import BadRequest, StoreError
from ollama_nb.net import is_loopback_socket
from ollama_nb.redact import RedactingFormatter, secrets_of
from ollama_nb.server.access import Keys
from ollama_nb.server.dialects.native.routes import OLLAMA_API_VERSION
from ollama_nb.server.dialects.openai.batches import OpenAIBatches
from ollama_nb.server.keys import KeyFile, KeyRing
from ollama_nb.server.standalone import addresses, bind, listen
from ollama_nb.server.state import ServerState
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings

WORKERS = min(32, (os.cpu_count() or 1) + 4)  # threads for blocking work
DRAIN_SECONDS = 5.0  # for running requests to end after the first signal
END_SECONDS = 25.0  # from the first signal to the end of the process, whatever its threads do; far above an orderly end
_log = logging.getLogger("ollama_nb.server")


def limit_shutdown() -> None:
    """End this process with status 1 after ``END_SECONDS``, unless it has ended by then.

    This is the last resort for a thread that ignores cancellation: Python would wait for it indefinitely. The timer
    needs neither the event loop nor Python's lock. It writes the stacks of all threads to standard error. The system
    then closes all sockets and files and ends the child processes, each of which dies with its parent.
    """
    faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=2)


class StopSignals:
    """Sets ``event`` on SIGINT or SIGTERM; a second signal ends the requests that still run at once.

    The first signal also limits the time until the process ends.
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.event = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self.event.is_set():
            self._state.hurry()
        else:
            limit_shutdown()
        self.event.set()


async def run(
    settings: Settings,
    sockets: Sequence[socket.socket],
    *,
    keys: Keys | KeyRing,
    meanwhile: Callable[[ServerState, asyncio.Event], Awaitable[None]] | None = None,
) -> None:
    """Serve until a signal comes or ``meanwhile`` sets the event; then drain, unload all models and return."""
    _start_workers(asyncio.get_running_loop())
    service = Service(settings)
    state = ServerState(service)
    stop = StopSignals(state)
    server = listen(state, sockets, keys=keys, origins=settings.origins)
    side = asyncio.ensure_future(meanwhile(state, stop.event)) if meanwhile else None
    if side is not None:
        side.add_done_callback(lambda ended: _stop_after_error(ended, stop.event))
    try:
        await service.start()
        service.batches.start(OpenAIBatches(service))
        for address in addresses(sockets):
            _log.info("Listening on %s (version %s)", address, OLLAMA_API_VERSION)
        await stop.event.wait()
        await state.drain(DRAIN_SECONDS)  # it still listens: new requests are refused with 503
        server.stop()
    finally:
        if side is not None:
            side.cancel()
            await asyncio.wait({side})
        await service.close()
        await server.close_all_connections()


def _stop_after_error(side: asyncio.Future[None], stop: asyncio.Event) -> None:
    """End the server if the task beside it has failed: a background server would never end otherwise."""
    if not side.cancelled() and (error := side.exception()) is not None:
        _log.error("the server ends because its watch has failed", exc_info=error)
        stop.set()


def _start_workers(loop: asyncio.AbstractEventLoop) -> None:
    """Start the threads of ``asyncio.to_thread`` now: no request can fail later because the system has none left."""
    executor = ThreadPoolExecutor(WORKERS, "ollama-nb-worker")
    all_run = threading.Barrier(WORKERS + 1)
    for _ in range(WORKERS):  # each waits for the others, so that each needs a thread of its own
        executor.submit(all_run.wait)
    all_run.wait()
    loop.set_default_executor(executor)


async def serve(settings: Settings) -> None:
    """``ollama serve``: listen on ``settings.host`` until SIGINT or SIGTERM.

    Raises OllamaError if the address cannot be bound, a setting is invalid, or a key is required and none exists.
    """
    file = KeyFile(settings.home)
    if settings.require_key and not file.read():
        raise BadRequest("OLLAMA_NB_REQUIRE_KEY is set, but no API key exists: make one with `ollama-nb keys add NAME`")
    if settings.host.warning:
        print(f"Warning: {settings.host.warning}", file=sys.stderr)
    own = secrets.token_urlsafe(32)
    keys = KeyRing(Keys(own), file)
    closed = keys.closed
    sockets = bind(settings.host)
    if not closed and not all(map(is_loopback_socket, sockets)):
        print(
            f"Warning: everyone who can reach {settings.host.address} can use this server: no API key exists. Make one "
            "with `ollama-nb keys add NAME`, or set OLLAMA_HOST=127.0.0.1 to accept clients on this machine only.",
            file=sys.stderr,
        )
    with _runtime_file(settings, sockets, own):
        await run(settings, sockets, keys=keys)


@contextlib.contextmanager
def _runtime_file(settings: Settings, sockets: Sequence[socket.socket], key: str) -> Iterator[None]:
    """Write the runtime file, so that this user's clients need no API key; remove it at the end of the block."""
    host = dataclasses.replace(settings.host, port=sockets[0].getsockname()[1])
    file = runtime.serve_file(settings.home, host.port)
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        runtime.write(file, host.url, key)
    except (OSError, StoreError) as error:
        _log.warning("this user's clients also need an API key if one exists: %s", error)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def set_up_logging(settings: Settings) -> None:
    """Log to standard error, at debug level with OLLAMA_DEBUG=1, with asyncio's messages with OLLAMA_DEBUG=2."""
    level = logging.DEBUG if settings.debug else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s", secrets_of(os.environ)))
    logging.basicConfig(level=level, handlers=[handler])
    if settings.debug < 2:
        logging.getLogger("asyncio").setLevel(logging.WARNING)
