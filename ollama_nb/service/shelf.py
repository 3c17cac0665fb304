"""Models carried elsewhere without a registry: packed into wheels, or into one tar file and back. Blocking."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from ollama_nb import modelfile
from ollama_nb.api.events import Report
from ollama_nb.api.models import Model
from ollama_nb.api.names import DEFAULT_TAG, Digest
from ollama_nb.api.units import human_bytes
from ollama_nb.errors import BadRequest
from ollama_nb.service.modelfiles import commands
from ollama_nb.service.resolve import find_in, parse_name
from ollama_nb.store import archive, wheelhouse
from ollama_nb.store.manifest import GGUF_KINDS
from ollama_nb.store.store import Store


def pack_wheel(
    store: Store, text: str, folder: Path, *, name: str = "", version: str = "1.0", part_size: int, report: Report
) -> tuple[str, list[Path]]:
    """Pack a model into wheels in ``folder``; return the distribution's name and the wheels, the main one first.

    Raises ModelNotFound, BadRequest for a model that cannot be packed, StoreError for a damaged one.
    """
    model = find_in(store, text)
    distribution = name or wheelhouse.distribution_name(_plain_name(model))
    files = _files(model)
    lines = [f"FROM ./{next(iter(files))}"]
    lines += [f"{_command(file)} ./{file}" for file in list(files)[1:]]
    written = "\n".join(lines + commands(model, model.system, model.params, ())) + "\n"
    _check_modelfile(model, written)
    content = wheelhouse.WheelContent(
        distribution, version, model.name.short, files, written, _card(store, model, distribution), model.licenses
    )
    paths = wheelhouse.pack(
        content, store.blobs, folder, part_size=part_size, report=report, cancelled=threading.Event()
    )
    return distribution, paths


def export_models(store: Store, texts: Sequence[str], path: Path, *, report: Report) -> list[Model]:
    """Write models into one tar file; a model that is named twice is written once."""
    models = list({model.name: model for model in (find_in(store, text) for text in texts)}.values())
    archive.export(models, store.blobs, path, report=report, cancelled=threading.Event())
    return models


def import_models(store: Store, path: Path, *, as_: str = "", report: Report) -> list[str]:
    """Take over the models of a tar file; return their short names."""
    target = parse_name(as_) if as_ else None
    names = archive.import_models(path, store, as_=target, report=report, cancelled=threading.Event())
    return [name.short for name in names]


def _plain_name(model: Model) -> str:
    name = model.name
    return name.model if name.tag == DEFAULT_TAG else f"{name.model}-{name.tag}"


def _files(model: Model) -> dict[str, Digest]:
    """The GGUF files of a model by their names in the wheel, its weights first."""
    files: dict[str, Digest] = {}
    for kind in GGUF_KINDS:
        for layer in model.manifest.layers:
            if layer.kind == kind:
                number = sum(name.startswith(kind) for name in files)
                files[f"{kind}-{number + 1}.gguf" if number else f"{kind}.gguf"] = layer.digest
    if "model.gguf" not in files:
        raise BadRequest(f"model '{model.name.short}' has no GGUF weights: only those go into a wheel")
    return files


def _command(file: str) -> str:
    """The word of a Modelfile for a file of that name."""
    return {"adapter": "ADAPTER", "draft": "DRAFT"}.get(file.partition(".")[0].partition("-")[0], "FROM")


def _check_modelfile(model: Model, text: str) -> None:
    """What is packed must come out again."""
    parts = modelfile.parse(text).request_parts()
    if parts.parameters != dict(model.params):
        changed = sorted(set(model.params) - set(parts.parameters)) or sorted(model.params)
        raise BadRequest(f"the parameters {', '.join(changed)} of '{model.name.short}' cannot be put into a Modelfile")
    if parts.messages != model.messages:
        raise BadRequest(f"'{model.name.short}' has messages with pictures or tool calls, which no Modelfile can hold")


def _card(store: Store, model: Model, distribution: str) -> str:
    """The model card, which an index shows as the wheel's description."""
    gguf = store.gguf(model)
    facts = {
        "architecture": model.config.model_family,
        "parameters": model.config.model_type,
        "quantization": model.config.file_type,
        "context length": str(gguf.arch("context_length", "")) if gguf else "",
        "size": human_bytes(model.size),
        "weights": f"sha256:{model.weights_digest.hex}" if model.weights_digest else "",
        "model": f"sha256:{model.digest}",
    }
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items() if value)
    name = model.name.model
    return (
        f"# {model.name.short}\n\n"
        "A language model as a wheel. It carries data only and is not meant to be installed.\n\n"
        f"    ollama-nb pull pip://{distribution} --as {name}\n    ollama-nb run {name}\n\n"
        f"| | |\n|---|---|\n{rows}"
    )
