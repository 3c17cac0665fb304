"""`ollama cp`, `rm`, `stop` and `--version`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ollama_nb import __version__
from ollama_nb.client.client import Client
from ollama_nb.client.connect import connect
from ollama_nb.errors import NotFound, OllamaError


def copy_model(source: str, destination: str) -> None:
    connect().copy(source, destination)
    print(f"copied '{source}' to '{destination}'")


def remove_models(models: Iterable[str]) -> None:
    """Remove one after the other, up to the first that cannot be removed. Each is stopped first."""
    client = connect()
    for model in models:
        try:
            unload(client, model)
        except NotFound:
            pass  # the delete says so in its own words
        except OllamaError:
            print(f"Warning: unable to stop model '{model}'", file=sys.stderr)
        client.delete(model)
        print(f"deleted '{model}'")


def stop_model(model: str) -> None:
    """Stop a model; one that is installed but not loaded is stopped already."""
    client = connect()
    try:
        client.show(model)
    except NotFound:
        raise NotFound(f'couldn\'t find model "{model}" to stop') from None
    unload(client, model)


def unload(client: Client, model: str) -> None:
    client.generate(model, stream=False, keep_alive=0)


def show_version() -> None:
    """The server's version, where there is one; no server is started for this."""
    try:
        print(f"ollama version is {connect(start=False).version()}")
    except OllamaError:
        print("Warning: could not connect to a running Ollama instance")
    print(f"ollama-nb version is {__version__}")
