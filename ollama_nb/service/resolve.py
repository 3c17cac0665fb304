"""From a model name in a request to a local model, with Ollama's error messages.

Source suffixes are removed first: ``…:local`` requires a local model; ``…:cloud`` and tags ending in ``-cloud`` mean a
remote one, which this program does not run.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from ollama_nb.api.models import GGUF, Model
from ollama_nb.api.names import ModelName
from ollama_nb.errors import BadRequest, Forbidden, InvalidName, ModelNotFound, Unsupported
from ollama_nb.service.backend import Backend
from ollama_nb.service.bundled import is_bundled, register_bundled
from ollama_nb.store.store import Store

CLOUD_MODEL = "ollama cloud is disabled: remote model is unavailable"
CLOUD_DETAILS = "ollama cloud is disabled: remote model details are unavailable"
_PIN = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model name with its source suffix; ``cloud`` models are not run by this program."""

    name: ModelName
    cloud: bool = False
    local: bool = False


def parse_reference(text: str) -> ModelReference:
    """Parse a name; surrounding blanks are ignored.

    Raises InvalidName, and BadRequest for suffixes that contradict each other.
    """
    rest, suffix = _cut_suffix(text.strip())
    cloud = suffix == "cloud" or _has_cloud_tag(rest)
    local = suffix == "local"
    if (cloud and local) or (suffix and _cut_suffix(rest)[1] not in ("", suffix)):
        raise BadRequest(f'use either :local or :cloud, not both: "{text}"')
    return ModelReference(ModelName.parse(rest), cloud, local)


def _cut_suffix(text: str) -> tuple[str, str]:
    head, colon, tail = text.rpartition(":")
    suffix = tail.lower()
    return (head, suffix) if colon and suffix in ("local", "cloud") else (text, "")


def _has_cloud_tag(text: str) -> bool:
    return text.rpartition("/")[2].partition(":")[2].lower().endswith("-cloud")


async def find(backend: Backend, text: str, *, cloud_error: str = CLOUD_MODEL) -> Model:
    """Return the local model named ``text``. The bundled model is registered on its first use.

    Raises InvalidName, Forbidden for cloud models and stubs of remote ones, and ModelNotFound with the text as given.
    """
    return await asyncio.to_thread(find_in, backend.store, text, cloud_error=cloud_error)


def find_in(store: Store, text: str, *, cloud_error: str = CLOUD_MODEL) -> Model:
    """``find``, blocking. ``NAME@sha256:…`` requires the model to have that digest."""
    named, _, pin = text.strip().partition("@")
    source = parse_reference(named if not pin or _PIN.fullmatch(pin) else text)
    if source.cloud:
        raise Forbidden(cloud_error)
    try:
        model = _resolve(store, source.name)
    except ModelNotFound:
        raise ModelNotFound(f"model '{text}' not found") from None
    if pin and pin != f"sha256:{model.digest}":
        raise ModelNotFound(f"model '{text}' not found: '{model.name.short}' is sha256:{model.digest[:12]}… here")
    if model.config.remote_host:
        raise ModelNotFound(f"model '{text}' not found") if source.local else Forbidden(cloud_error)
    return model


async def weights_header(backend: Backend, model: Model, text: str) -> GGUF:
    """Read the header of the model's weights.

    Raises ModelNotFound when the file is missing, CorruptModel when it is not a GGUF file, and Unsupported when the
    model has no weights that the engine can run.
    """
    weights = model.weights
    if weights is None:
        raise Unsupported(f'"{text}" has no GGUF weights, which is the only format that this version runs')
    gguf = await asyncio.to_thread(lambda: backend.store.gguf(model) if weights.is_file() else None)
    if gguf is None:
        raise ModelNotFound(f'model "{text}" not found, try pulling it first')
    return gguf


def _resolve(store: Store, name: ModelName) -> Model:
    if is_bundled(name) and not store.exists(name):
        register_bundled(store)
    return store.resolve(name)


def parse_name(text: str, error: str = "") -> ModelName:
    """Parse a model name without source suffixes. ``error`` is put before the reason in the message of InvalidName."""
    if error and (why := ModelName.fault(text)):
        raise InvalidName(f"{error} ({why})" if text else error)
    return ModelName.parse(text)
