"""``ollama serve``: the server, in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import sys
from collections.abc import Mapping

from ollama_nb.errors import BadRequest, StoreError
from ollama_nb.server.app import serve as listen
from ollama_nb.server.app import set_up_logging
from ollama_nb.settings import Host, Settings
from ollama_nb.store.registry.credentials import RegistryKey

_log = logging.getLogger("ollama_nb.serve")


def serve(host: str = "", port: int | None = None) -> int:
    """Serve until SIGINT or SIGTERM, at ``--host``, else ``OLLAMA_HOST``, else the default address."""
    env = own_environment(os.environ)
    if env != os.environ:
        print(
            f"OLLAMA_HOST is {os.environ['OLLAMA_HOST']}, the address of Jupyter's server: "
            "listening at the default address instead",
            file=sys.stderr,
        )
    settings = Settings.from_env(env)
    settings = dataclasses.replace(settings, host=address(host, port, settings.host))
    # Child processes find this server, not the one that the variable named before.
    os.environ.pop("OLLAMA_API_KEY", None)
    os.environ["OLLAMA_HOST"] = settings.host.url
    set_up_logging(settings)
    _ensure_registry_key(settings)
    asyncio.run(listen(settings))
    return 0


def _ensure_registry_key(settings: Settings) -> None:
    """Create the key for registries if it is missing. As in Ollama, the public half of a new key is printed once."""
    new = not settings.key.exists()
    try:
        key = RegistryKey.ensure(settings.key)
    except StoreError as error:
        _log.warning("no key for registries: %s", error.message)
        return
    if new:
        print(f"Couldn't find '{settings.key}'. Generating new private key.")
        print(f"Your new public key is: \n\nssh-ed25519 {key.blob}\n", flush=True)


def own_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without the address that the Jupyter extension exported for clients."""
    exported = {"OLLAMA_HOST", "OLLAMA_API_KEY"} if env.get("OLLAMA_NB_EXPORTED") == "1" else set()
    return {name: value for name, value in env.items() if name not in exported}


def address(host: str, port: int | None, default: Host) -> Host:
    """The address to listen on. Raises BadRequest for invalid flags."""
    found = Host.parse(host) if host else default
    if host and (found.warning or not _is_host(found.host)):
        raise BadRequest(f'invalid value for --host: "{host}"')
    if port is None:
        return found
    if not 0 <= port <= 65535:
        raise BadRequest(f'invalid value for --port: "{port}" (must be 0 to 65535)')
    return dataclasses.replace(found, port=port, warning="")


def _is_host(text: str) -> bool:
    return not any(char.isspace() or char in "/?#@[]" for char in text)
