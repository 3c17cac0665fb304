"""Find a server, or start a background one.

The order: a given address, ``OLLAMA_HOST``, the Jupyter server that started this process, our background server, this
user's server on the default port, a new background server. A given address is never replaced by another one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from ollama_nb import __version__
from ollama_nb.client.client import Client
from ollama_nb.client.http import NO_SERVER, Reconnect, ServerAddress
from ollama_nb.errors import ConnectError, OllamaError
from ollama_nb.runtime import RuntimeInfo, background_file, of_parent_jupyter, read, serve_file
from ollama_nb.settings import DEFAULT_PORT, Host, Settings, absolute_folders

if sys.platform != "win32":
    import fcntl

GREETING = "Ollama is running"
START_SECONDS = 60.0  # until a background server must answer
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 10  # lines of its log in the error about a server that did not start


def connect(host: str | None = None, *, key: str | None = None, start: bool = True) -> Client:
    """A client of the server that was found; ``start``: a background server is started if necessary.

    ``host`` has the form of ``OLLAMA_HOST``. Raises ConnectError when no server answers. A server that was found
    without a given address may end when it is idle; the client then finds or starts the next one.
    """
    env = os.environ
    env.update(absolute_folders(env))  # later calls find the same server, whatever the working directory is then
    address_text = host or env.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    if address_text:
        address = Host.parse(address_text)
        if address.warning:
            print(f"Warning: {address.warning}", file=sys.stderr)
        return _given(address, _env_address(address, env) if key is None else ServerAddress(address.url, key))

    def reconnect() -> ServerAddress:
        settings = Settings.from_env(env)
        found = find_server(settings, env) or (start_background(settings) if start else None)
        if found is None:
            raise ConnectError(NO_SERVER)
        return found.address

    return _client_at(reconnect(), reconnect)


def find_server(settings: Settings, env: Mapping[str, str]) -> Client | None:
    """A running server of this user."""
    jupyter = of_parent_jupyter(env)
    return (_client_of(jupyter) if jupyter else None) or find_background(settings) or _on_default_port()


def find_background(settings: Settings) -> Client | None:
    """The running background server. One of another version does not count: starting ours replaces it."""
    found = read(background_file(settings.home))
    return _client_of(found) if found and found.build == __version__ else None


def start_background(settings: Settings) -> Client:
    """Start a background server, unless another process just did. Raises ConnectError with the end of its log."""
    log = settings.home / "logs" / "server.log"
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        log.parent.mkdir(mode=0o700, exist_ok=True)
        with _locked(settings.home / "start.lock"):
            return find_background(settings) or _wait(_spawn(settings, log), settings, log)
    except OSError as error:
        raise ConnectError(f"cannot start a background server in {settings.home}: {error.strerror or error}") from None


def _client_at(address: ServerAddress, reconnect: Reconnect | None = None) -> Client:
    return Client(address.url, address.key, reconnect=reconnect, trust=address.trust)


def _client_of(found: RuntimeInfo) -> Client | None:
    """A client of the server that a runtime file names, if it is alive, proves its key and accepts it."""
    client = Client(found.url, found.key, trust="key")
    return client if client.answers() else None


def _on_default_port() -> Client | None:
    """Any Ollama on 127.0.0.1:11434, if every process that listens on that port is this user's."""
    if written := _written_address(Host(), os.environ):
        client = _client_at(written)
        if client.answers():
            return client
    client = Client(f"http://127.0.0.1:{DEFAULT_PORT}", trust="user")
    try:
        return client if client.greeting() == GREETING else None
    except OllamaError:
        return None


def _given(address: Host, first: ServerAddress) -> Client:
    """A client of the server at a given address. Raises ConnectError when no server answers there."""
    client = _client_at(first)
    try:
        client.require()
    except ConnectError:
        # The runtime file of a server that was killed: another one, which the user named, may be at its address now.
        written = _written_address(address, os.environ)
        if written is None or first != written:
            raise
        client = Client(address.url)
        client.require()
    return client


def _env_address(address: Host, env: Mapping[str, str]) -> ServerAddress:
    """A given address with its key: ``OLLAMA_API_KEY``, or the one that this user's server wrote down.

    A key that Jupyter exported is only for the address that was exported with it, and for the server that knows it.
    """
    key = env.get("OLLAMA_API_KEY", "").strip()
    exported = env.get("OLLAMA_NB_EXPORTED") == "1"
    if key and exported and Host.parse(env.get("OLLAMA_HOST", "")).url == address.url:
        return ServerAddress(address.url, key, "key")
    if key and not exported:
        return ServerAddress(address.url, key)
    return _written_address(address, env) or ServerAddress(address.url)


def _written_address(address: Host, env: Mapping[str, str]) -> ServerAddress | None:
    """The address in the runtime file of this user's ``ollama serve`` at ``address``."""
    written = read(serve_file(Settings.from_env(env).home, address.port))
    return ServerAddress(written.url, written.key, "key") if written and written.url == address.url else None


def _spawn(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, without a terminal, with its output in the log."""
    env = {name: value for name, value in os.environ.items() if name not in {"OLLAMA_HOST", "OLLAMA_API_KEY"}}
    env |= {**absolute_folders(env), "OLLAMA_NB_HOME": str(settings.home)}
    # -P: modules in the working folder must not become part of the server.
    command = [sys.executable, "-P", "-m", "ollama_nb.server", "--background"]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd=settings.home,
            env=env,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    # A kernel may outlive its server, which would remain a zombie process without a wait.
    threading.Thread(target=process.wait, daemon=True, name="ollama-nb-reaper").start()
    return process


def _wait(process: subprocess.Popen[bytes], settings: Settings, log: Path) -> Client:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        failed = process.returncode  # 0: it found another server that is just starting
        if client := find_background(settings):
            return client
        if failed:
            raise ConnectError(f"the background server did not start. The end of {log}:\n{_tail(log)}")
        time.sleep(POLL_SECONDS)
    raise ConnectError(f"the background server did not start in {START_SECONDS:.0f} s. Its log: {log}")


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:])
    except OSError:
        return ""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes. Without flock, the server's own lock still admits only one server."""
    with path.open("ab") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
