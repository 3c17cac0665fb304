"""The catalogue: list, show, copy, delete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ollama_nb.api.models import GGUF, Listed, Model, Shown
from ollama_nb.api.names import ModelName
from ollama_nb.errors import BadRequest, ModelNotFound, OllamaError
from ollama_nb.service import bundled, templates
from ollama_nb.service import capabilities as caps
from ollama_nb.service.backend import Backend
from ollama_nb.service.modelfiles import modelfile_text, parameters_text
from ollama_nb.service.resolve import CLOUD_DETAILS, find, parse_name, parse_source

_BARE_TEMPLATE = "{{ .Prompt }}"
"""What a model without any template uses, told by show; a Modelfile made from it leaves it out."""

_log = logging.getLogger("ollama_nb.service")


async def list_models(backend: Backend) -> list[Listed]:
    """Every readable model, newest first."""
    return await asyncio.to_thread(lambda: [_listed(backend, model) for model in backend.store.models()])


async def show(
    backend: Backend, text: str, *, verbose: bool = False, system: str = "", options: Mapping[str, Any] | None = None
) -> Shown:
    """Everything about one model. ``system`` and ``options`` are shown in place of, or on top of, the model's own."""
    if not text:
        raise BadRequest("model is required")
    try:
        model = await find(backend, text, cloud_error=CLOUD_DETAILS)
    except ModelNotFound:
        raise ModelNotFound(f"model '{parse_source(text).name.short}' not found") from None
    return await asyncio.to_thread(_shown, backend, model, verbose, system, options or {})


async def copy(backend: Backend, source_text: str, destination_text: str) -> None:
    """Raises InvalidName for a bad name, ModelNotFound for an unknown source. A name onto itself: nothing happens."""
    source = parse_name(source_text, f'source "{source_text}" is invalid')
    destination = parse_name(destination_text, f'destination "{destination_text}" is invalid')
    if source.key != destination.key:
        await asyncio.to_thread(_copy, backend, source, destination, source_text)


async def delete(backend: Backend, text: str) -> None:
    """Raises BadRequest, InvalidName or ModelNotFound. A loaded copy goes on until it expires."""
    if not text:
        raise BadRequest("model is required")
    name = _deletable(text)
    try:
        await asyncio.to_thread(backend.store.delete, name)
    except ModelNotFound:
        raise ModelNotFound(f"model '{text}' not found") from None


def _deletable(text: str) -> ModelName:
    """Stubs of cloud models are deleted by the very name that they are listed under."""
    try:
        source = parse_source(text)
        return ModelName.parse(text) if source.cloud else source.name
    except OllamaError:
        why = ModelName.fault(text)
        raise BadRequest(f'name "{text}" is invalid' + (f" ({why})" if why else "")) from None


def _copy(backend: Backend, source: ModelName, destination: ModelName, source_text: str) -> None:
    store = backend.store
    if bundled.is_bundled(source):
        bundled.register(store)
    try:
        store.copy(source, destination)
    except ModelNotFound:
        raise ModelNotFound(f'model "{source_text}" not found') from None


def _header(backend: Backend, model: Model, *, arrays: bool = False) -> GGUF | None:
    try:
        return backend.store.gguf(model, arrays=arrays)
    except OllamaError as error:
        # A model whose weights are missing or broken can still be listed, shown and removed.
        _log.warning("weights of %s: %s", model.name.short, error.message)
        return None


def _listed(backend: Backend, model: Model) -> Listed:
    gguf = _header(backend, model)
    return Listed(
        model,
        caps.capabilities(model, gguf, backend.settings.go_template),
        parent(model),
        _length(gguf, "context_length") or model.config.context_length,
        _length(gguf, "embedding_length") or model.config.embedding_length,
    )


def _shown(backend: Backend, model: Model, verbose: bool, system: str, options: Mapping[str, Any]) -> Shown:
    gguf = _header(backend, model, arrays=verbose)
    projector = backend.store.gguf_at(model.projectors[0], arrays=verbose) if model.projectors else None
    system = system or model.system
    return Shown(
        model=model,
        capabilities=caps.capabilities(model, gguf, backend.settings.go_template),
        parent=parent(model),
        modelfile=modelfile_text(model, system, {**model.params, **options}),
        parameters=parameters_text(model.params),
        template=_template_in_use(model, gguf, backend.settings.go_template) or _BARE_TEMPLATE,
        system=system,
        license="\n".join(model.licenses),
        gguf=gguf,
        projector=projector,
    )


def parent(model: Model) -> str:
    """The model that the weights were taken over from."""
    return next((layer.from_ for layer in model.manifest.layers if layer.kind == "model" and layer.from_), "")


def _template_in_use(model: Model, gguf: GGUF | None, go_template: bool | None) -> str:
    try:
        return templates.chat_format(model, gguf, go_template).template
    except OllamaError:
        return model.template or ""


def _length(gguf: GGUF | None, key: str) -> int:
    value = gguf.arch(key, 0) if gguf is not None else 0
    return value if isinstance(value, int) else 0
