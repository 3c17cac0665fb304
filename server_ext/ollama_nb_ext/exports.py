"""The environment of kernels and terminals of this Jupyter server: the address of the API and its key."""

from __future__ import annotations

from collections.abc import MutableMapping
from urllib.parse import urlsplit

from jupyter_server.serverapp import ServerApp

from ollama_nb import net

HOST, KEY, MARK = "OLLAMA_HOST", "OLLAMA_API_KEY", "OLLAMA_NB_EXPORTED"


def own_address(serverapp: ServerApp, prefix: str) -> str | None:
    """The address of the API on the Jupyter server's own port.

    None if plain HTTP clients cannot use it: a Unix socket, or https with a certificate that they do not trust.
    """
    if serverapp.sock or serverapp.certfile or not serverapp.port:
        return None
    host = "127.0.0.1" if serverapp.ip == "localhost" else net.connectable(serverapp.ip)
    return f"http://{net.host_and_port(host, serverapp.port)}{serverapp.base_url.rstrip('/')}{prefix}"


class Exports:
    """Changes to an environment that can be undone. An OLLAMA_HOST that the user has set is never changed."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        self._env = env
        self._before: dict[str, str | None] = {}

    def apply(self, url: str, key: str) -> bool:
        """Export the address and the key; return False, and change nothing, if the user has set an address."""
        if self._env.get(HOST, "").strip() and not self._env.get(MARK):
            return False
        self._set(HOST, url)
        self._set(KEY, key)
        self._set(MARK, "1")
        exceptions = net.no_proxy_for((*net.LOOPBACK_HOSTS, urlsplit(url).hostname or ""), self._env)
        if exceptions is not None:
            for name in ("no_proxy", "NO_PROXY"):
                self._set(name, exceptions)
        return True

    def undo(self) -> None:
        for name, value in self._before.items():
            if value is None:
                self._env.pop(name, None)
            else:
                self._env[name] = value
        self._before.clear()

    def _set(self, name: str, value: str) -> None:
        self._before.setdefault(name, self._env.get(name))
        self._env[name] = value
