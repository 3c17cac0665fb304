"""What kernels and terminals of this Jupyter server inherit: where Ollama is, and the key that opens it."""

from __future__ import annotations

from collections.abc import MutableMapping
from urllib.parse import urlsplit

from jupyter_server.serverapp import ServerApp

HOST, KEY, MARK = "OLLAMA_HOST", "OLLAMA_API_KEY", "OLLAMA_NB_EXPORTED"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_NO_PROXY = ("no_proxy", "NO_PROXY")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def own_address(serverapp: ServerApp, prefix: str) -> str | None:
    """The address of the API on the Jupyter server's own port.

    None where plain HTTP clients cannot use that: a Unix socket, or https with a certificate that they do not know.
    """
    if serverapp.sock or serverapp.certfile or not serverapp.port:
        return None
    host = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(
        serverapp.ip, serverapp.ip
    )
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{serverapp.port}{serverapp.base_url.rstrip('/')}{prefix}"


class Exports:
    """Changes to an environment that can be undone. An OLLAMA_HOST that its user set is never touched."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        self._env = env
        self._before: dict[str, str | None] = {}

    def apply(self, url: str, key: str) -> bool:
        """Export address and key, both or neither; False when the user has set an address."""
        if self._env.get(HOST, "").strip() and not self._env.get(MARK):
            return False
        self._set(HOST, url)
        self._set(KEY, key)
        self._set(MARK, "1")
        if any(self._env.get(name) or self._env.get(name.upper()) for name in _PROXIES):
            self._spare_proxy(urlsplit(url).hostname or "")
        return True

    def undo(self) -> None:
        for name, value in self._before.items():
            if value is None:
                self._env.pop(name, None)
            else:
                self._env[name] = value
        self._before.clear()

    def _spare_proxy(self, host: str) -> None:
        listed = [part.strip() for name in _NO_PROXY for part in self._env.get(name, "").split(",") if part.strip()]
        if "*" in listed:
            return
        hosts = dict.fromkeys((*listed, *_LOOPBACK, host))
        for name in _NO_PROXY:
            self._set(name, ",".join(hosts))

    def _set(self, name: str, value: str) -> None:
        self._before.setdefault(name, self._env.get(name))
        self._env[name] = value
