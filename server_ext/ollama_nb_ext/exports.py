"""The environment of kernels and terminals of this Jupyter server: the address of the API and its key."""

from __future__ import annotations

from collections.abc import MutableMapping
from urllib.parse import urlsplit

from jupyter_server.serverapp import ServerApp

from ollama_nb import net
from ollama_nb.settings import EnvironmentChanges, absolute_folders, openai_variables

HOST, KEY, MARK = "OLLAMA_HOST", "OLLAMA_API_KEY", "OLLAMA_NB_EXPORTED"
OPENAI_MARK = "OLLAMA_NB_EXPORTED_OPENAI"
"""The marks say that the values are a Jupyter server's, which another one started below it may replace."""


def own_address(serverapp: ServerApp, prefix: str) -> str | None:
    """The address of the API on the Jupyter server's own port.

    None if plain HTTP clients cannot use it: a Unix socket, or https with a certificate that they do not trust.
    """
    if serverapp.sock or serverapp.certfile or not serverapp.port:
        return None
    host = "127.0.0.1" if serverapp.ip == "localhost" else net.connectable(serverapp.ip)
    return f"http://{net.host_and_port(host, serverapp.port)}{serverapp.base_url.rstrip('/')}{prefix}"


class Exports:
    """Changes to an environment that can be undone. Values that the user has set are never changed."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        self._env = env
        self._changes = EnvironmentChanges(env)

    def apply(self, url: str, key: str) -> bool:
        """Export the address and the key; return False, and change nothing, if the user has set an address."""
        if self._env.get(HOST, "").strip() and not self._env.get(MARK):
            return False
        self._changes.set({HOST: url, KEY: key, MARK: "1"})
        self._bypass_proxy(url)
        return True

    def apply_folders(self) -> None:
        """Make the folders of OLLAMA_MODELS and others absolute: kernels have other working directories."""
        self._changes.set(absolute_folders(self._env))

    def apply_openai(self, url: str, key: str) -> bool:
        """Export the variables of OpenAI's clients; return False if the user has set one: neither is changed then."""
        values = openai_variables(url, key)
        if any(self._env.get(name, "").strip() for name in values) and not self._env.get(OPENAI_MARK):
            return False
        self._changes.set({**values, OPENAI_MARK: "1"})
        self._bypass_proxy(url)
        return True

    def undo(self) -> None:
        """Put all variables back."""
        self._changes.undo()

    def _bypass_proxy(self, url: str) -> None:
        exceptions = net.no_proxy_for((*net.LOOPBACK_HOSTS, urlsplit(url).hostname or ""), self._env)
        if exceptions is not None:
            self._changes.set({"no_proxy": exceptions, "NO_PROXY": exceptions})
