"""Find a server, in the order of what the user most likely means, or start a private one.

An address that was given → ``OLLAMA_HOST`` → the Jupyter server that started this process → our background server →
this user's server on the default port → a background server started now. A given address is never replaced by another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from ollama_nb.client import background
from ollama_nb.client.background import answering
from ollama_nb.client.client import Client
from ollama_nb.client.http import NO_SERVER
from ollama_nb.errors import ConnectError, OllamaError
from ollama_nb.net import listening_users
from ollama_nb.runtime import of_parent_jupyter, read, serve_file
from ollama_nb.settings import DEFAULT_PORT, Host, Settings

GREETING = "Ollama is running"


def connect(host: str | None = None, *, key: str | None = None, start: bool = True) -> Client:
    """A client of the server that was found; with ``start``, a background server is started when there is none.

    ``host`` is written as ``OLLAMA_HOST`` is. Raises ConnectError when no server answers. One that was found, not
    given, may end when it is idle: the client then finds, or starts, the next one by itself.
    """
    env = os.environ
    asked = host or env.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    if asked:
        address = Host.parse(asked)
        if address.warning:
            print(f"Warning: {address.warning}", file=sys.stderr)
        client = Client(address.url, _key(asked, env) or _own_key(address, env) if key is None else key)
        client.require()
        return client

    def again() -> tuple[str, str]:
        found = find(Settings.from_env(env), env) or (background.start(Settings.from_env(env)) if start else None)
        if found is None:
            raise ConnectError(NO_SERVER)
        return found.url, found.key

    return Client(*again(), again=again)


def find(settings: Settings, env: Mapping[str, str]) -> Client | None:
    """A server that runs already and is this user's, without any address given."""
    jupyter = of_parent_jupyter(env)
    return (answering(jupyter) if jupyter else None) or background.find(settings) or _on_default_port()


def _on_default_port() -> Client | None:
    """Any Ollama on 127.0.0.1:11434, if all who listen on that port are this user."""
    who = listening_users(DEFAULT_PORT)
    if who is not None and who != {os.getuid()}:
        return None
    client = Client(f"http://127.0.0.1:{DEFAULT_PORT}", _own_key(Host(), os.environ))
    try:
        return client if client.greeting() == GREETING else None
    except OllamaError:
        return None


def _own_key(address: Host, env: Mapping[str, str]) -> str:
    """The key with which a server that this user started on this machine lets its user in; empty when there is none."""
    written = read(serve_file(Settings.from_env(env).home, address.port))
    return written.key if written is not None and written.url == address.url else ""


def _key(host: str, env: Mapping[str, str]) -> str:
    """``OLLAMA_API_KEY``; but one that Jupyter exported belongs to the address exported with it, and to no other."""
    exported = env.get("OLLAMA_NB_EXPORTED") == "1"
    if exported and Host.parse(host).url != Host.parse(env.get("OLLAMA_HOST", "")).url:
        return ""
    return env.get("OLLAMA_API_KEY", "").strip()
