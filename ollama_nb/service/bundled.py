"""The bundled model: it is put into the store on its first use."""

from __future__ import annotations

import threading
from http import HTTPStatus

from ollama_nb import modelfile, sprout
from ollama_nb.api.events import Progress
from ollama_nb.api.names import ModelName
from ollama_nb.api.requests import CreateRequest
from ollama_nb.errors import OllamaError, StoreError
from ollama_nb.store.assemble import assemble
from ollama_nb.store.store import Store

SPROUT = ModelName("sprout")
_NOT_WRITTEN = (
    'the bundled model "sprout" must be written into the models folder before its first use, but {}; make the folder '
    "writable once, or set OLLAMA_MODELS to another folder"
)
_registering = threading.Lock()


def is_bundled(name: ModelName) -> bool:
    return name.key == SPROUT.key


def register_bundled(store: Store) -> None:
    """Put the bundled model into the store, with its Modelfile applied. Blocking.

    A model of that name that has all its files is left as it is; missing files are restored. Raises StoreError, with
    status 403 if the models folder cannot be written.
    """
    with _registering:
        if _is_complete(store):
            return
        try:
            _register(store)
        except StoreError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            raise error.with_message(_NOT_WRITTEN.format(error.message)) from error


def _register(store: Store) -> None:
    parts = modelfile.parse(sprout.MODELFILE.read_bytes()).request_parts()
    weights = store.blobs.add_file(sprout.GGUF)
    request = CreateRequest(
        model=SPROUT.short,
        template=parts.template,
        system=parts.system,
        parameters=parts.parameters,
        licenses=parts.licenses,
    )
    assemble(store, request, base=None, files={sprout.GGUF.name: weights}, report=_ignore_progress)


def _is_complete(store: Store) -> bool:
    try:
        model = store.resolve(SPROUT)
    except OllamaError:
        return False
    return model.weights is None or model.weights.is_file()


def _ignore_progress(progress: Progress) -> None:
    """Registration takes a moment only and reports nothing."""
