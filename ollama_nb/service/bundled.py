"""Models that come with the package: registered in the store at their first use, like pulled ones."""

from __future__ import annotations

import threading

from ollama_nb import modelfile, sprout
from ollama_nb.api.chat import CreateRequest
from ollama_nb.api.events import Progress
from ollama_nb.api.names import ModelName
from ollama_nb.errors import OllamaError
from ollama_nb.store.assemble import assemble
from ollama_nb.store.store import Store

SPROUT = ModelName("sprout")

_one_at_a_time = threading.Lock()


def is_bundled(name: ModelName) -> bool:
    return name.key == SPROUT.key


def register(store: Store) -> None:
    """Put the bundled model into the store, its Modelfile applied; nothing happens when the name is taken. Blocking.

    One that has lost some of its files gets them back.
    """
    with _one_at_a_time:
        if _is_whole(store):
            return
        parts = modelfile.parse(sprout.MODELFILE.read_bytes()).request_parts()
        weights = store.blobs.add_file(sprout.GGUF)
        request = CreateRequest(
            model=SPROUT.short,
            template=parts.template,
            system=parts.system,
            parameters=parts.parameters,
            licenses=parts.licenses,
        )
        assemble(store, request, base=None, files={sprout.GGUF.name: weights}, report=_say_nothing)


def _is_whole(store: Store) -> bool:
    try:
        model = store.resolve(SPROUT)
    except OllamaError:
        return False
    return model.weights is None or model.weights.is_file()


def _say_nothing(progress: Progress) -> None:
    """First use is silent: it takes a moment."""
