"""The catalogue: list, show, copy and delete models, and a stored model as a Modelfile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ollama_nb.api.encode import go_float, go_json, go_quote
from ollama_nb.api.models import GGUF, Listed, Model, Shown
from ollama_nb.api.names import ModelName
from ollama_nb.errors import BadRequest, ModelNotFound, OllamaError
from ollama_nb.modelfile import quote
from ollama_nb.service import capabilities as caps
from ollama_nb.service import templates
from ollama_nb.service.backend import Backend
from ollama_nb.service.bundled import is_bundled, register_bundled
from ollama_nb.service.resolve import CLOUD_DETAILS, find, parse_name, parse_reference

_BARE_TEMPLATE = "{{ .Prompt }}"
"""What ``show`` reports for a model without a template; its Modelfile has no TEMPLATE line."""

_log = logging.getLogger("ollama_nb.service")


async def list_models(backend: Backend) -> list[Listed]:
    """Return every readable model, newest first."""
    return await asyncio.to_thread(lambda: [_listed(backend, model) for model in backend.store.models()])


async def show(
    backend: Backend, text: str, verbose: bool = False, system: str = "", options: Mapping[str, Any] | None = None
) -> Shown:
    """Describe one model. In the result, ``system`` replaces the model's own and ``options`` add to its parameters."""
    if not text:
        raise BadRequest("model is required")
    try:
        model = await find(backend, text, cloud_error=CLOUD_DETAILS)
    except ModelNotFound:
        raise ModelNotFound(f"model '{parse_reference(text).name.short}' not found") from None
    return await asyncio.to_thread(_shown, backend, model, verbose, system, options or {})


async def copy(backend: Backend, source_text: str, destination_text: str) -> None:
    """Copy a model; copying it to its own name has no effect. Raises InvalidName and ModelNotFound."""
    source = parse_name(source_text, f'source "{source_text}" is invalid')
    destination = parse_name(destination_text, f'destination "{destination_text}" is invalid')
    if source.key != destination.key:
        await asyncio.to_thread(_copy, backend, source, destination, source_text)


async def delete(backend: Backend, text: str) -> None:
    """Delete a model; if it is loaded, it remains loaded until it expires.

    Raises BadRequest, InvalidName and ModelNotFound.
    """
    if not text:
        raise BadRequest("model is required")
    name = _deletable(text)
    try:
        await asyncio.to_thread(backend.store.delete, name)
    except ModelNotFound:
        raise ModelNotFound(f"model '{text}' not found") from None


def _deletable(text: str) -> ModelName:
    """Parse the name of a model to delete; stubs of cloud models keep their suffix, as they are listed."""
    try:
        source = parse_reference(text)
        return ModelName.parse(text) if source.cloud else source.name
    except OllamaError:
        why = ModelName.fault(text)
        raise BadRequest(f'name "{text}" is invalid' + (f" ({why})" if why else "")) from None


def _copy(backend: Backend, source: ModelName, destination: ModelName, source_text: str) -> None:
    store = backend.store
    if is_bundled(source):
        register_bundled(store)
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
    """The model that the weights came from; empty if they came from a file."""
    return next((layer.from_ for layer in model.manifest.layers if layer.kind == "model" and layer.from_), "")


def _template_in_use(model: Model, gguf: GGUF | None, go_template: bool | None) -> str:
    try:
        return templates.chat_format(model, gguf, go_template).template
    except OllamaError:
        return model.template or ""


def _length(gguf: GGUF | None, key: str) -> int:
    value = gguf.arch(key, 0) if gguf is not None else 0
    return value if isinstance(value, int) else 0


def parameters_text(params: Mapping[str, Any]) -> str:
    """One ``key value`` line per value, keys sorted and padded to 30, strings quoted."""
    return "\n".join(
        f"{key:<30} {go_quote(value) if isinstance(value, str) else parameter_text(value)}"
        for key, value in _each(params)
    )


def modelfile_text(model: Model, system: str, params: Mapping[str, Any]) -> str:
    """A Modelfile from which the same model can be created. Whole numbers are written without an exponent."""
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name.short}",
        "",
        f"FROM {model.weights or model.name.short}",
    ]
    lines += [f"ADAPTER {path}" for path in model.adapters]
    lines += [f"DRAFT {model.draft}"] if model.draft else []
    lines += [f"FROM {path}" for path in model.projectors]
    return "\n".join(lines + modelfile_commands(model, system, params, model.licenses)) + "\n"


def modelfile_commands(model: Model, system: str, params: Mapping[str, Any], licenses: Sequence[str]) -> list[str]:
    """The lines of a Modelfile other than those that name files."""
    single = {
        "TEMPLATE": model.template,
        "SYSTEM": system,
        "RENDERER": model.config.renderer,
        "PARSER": model.config.parser,
        "REQUIRES": model.config.requires,  # Ollama omits this line
    }
    lines = [f"{word} {quote(value)}" for word, value in single.items() if value]
    lines += [f"PARAMETER {key} {quote(parameter_text(value))}" for key, value in _each(params)]
    lines += [f"LICENSE {quote(text)}" for text in licenses]
    return lines + [f"MESSAGE {message.role} {quote(message.content)}" for message in model.messages]


def parameter_text(value: Any) -> str:
    """A parameter's value as written in a Modelfile."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return go_float(value)
    return value if isinstance(value, str) else go_json(value)


def _each(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, sorted by key; a list yields each of its values."""
    for key in sorted(params):
        value = params[key]
        yield from ((key, item) for item in (value if isinstance(value, list | tuple) else (value,)))
