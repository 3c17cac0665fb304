"""From a create request to a model in the store: layers, config, manifest, in Ollama's order and with its status lines.

The blobs of all files are stored before this begins, and templates were parsed by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ollama_nb.api.chat import CreateRequest
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.api.units import human_number
from ollama_nb.errors import BadRequest
from ollama_nb.store.layers import Header, Layers
from ollama_nb.store.quantization import FLOATS, said_type, type_of
from ollama_nb.store.quantization import parse as parse_type
from ollama_nb.store.sources import FamilyDefaults, Source, Sources, Tools
from ollama_nb.store.store import Store


def assemble(
    store: Store,
    request: CreateRequest,
    *,
    base: Model | None,
    files: Mapping[str, Digest],
    report: Report,
    tools: Tools | None = None,
) -> None:
    """Make the model ``request.model`` from ``base``, from stored ``files`` (path → digest), or from both.

    Blocking. Raises BadRequest, CorruptModel or NotFound for what the request asks wrongly; the store then keeps at
    most blobs that no model uses. Without ``tools`` nothing is converted and no template or family recognised.
    """
    name = ModelName.parse(request.model)
    _check(request, base, files)
    tools = tools or Tools()
    layers = _gather(store, request, base, files, report, tools)
    config = _config(request, base, layers.headers)
    defaults = _family_defaults(config, layers.headers, tools) if base is None else None
    if defaults is not None:
        config = replace(config, renderer=defaults.renderer, parser=defaults.parser)
    parameters = {**layers.parameters, **request.parameters}
    for option, value in defaults.parameters.items() if defaults is not None else ():
        parameters.setdefault(option, value)
    layers.add_texts(request, parameters)
    for status in layers.statuses():
        report(Progress(status))
    report(Progress("writing manifest"))
    store.write_manifest(name, layers.config(config), layers.layers)
    report(Progress("success"))


def _gather(
    store: Store, request: CreateRequest, base: Model | None, files: Mapping[str, Digest], report: Report, tools: Tools
) -> Layers:
    """The layers that are files, in Ollama's order: what was inherited, models, their template, adapter, draft."""
    wanted = parse_type(request.quantize) if request.quantize else ""
    sources, layers = Sources(store, tools, report), Layers(store)
    if base is not None:
        layers.inherit(base)
    if files:
        for source in sources.model(files, wanted):
            layers.add(source)
        layers.detect_template(tools.recognise)
    if request.adapters:
        for source in sources.adapter(read_files(request.adapters), layers.weights):
            layers.add(source, adapter=True)
    if request.draft_files:
        layers.add_draft(_draft(sources, request))
        layers.check_draft()
    if wanted:
        layers.quantize(sources, wanted)
    return layers


def _draft(sources: Sources, request: CreateRequest) -> Source:
    wanted = parse_type(request.draft_quantize) if request.draft_quantize else ""
    found = sources.model(read_files(request.draft_files), wanted)
    if len(found) > 1:
        raise BadRequest("only one draft model is supported")
    if wanted and (kind := type_of(found[0].gguf)) not in FLOATS:
        raise BadRequest(f"draft quantization requires an unquantized draft model, got {kind}")
    return sources.quantized(found[0], wanted) if wanted else found[0]


def read_files(files: Mapping[str, str]) -> dict[str, Digest]:
    """A request's files. Raises BadRequest for a path that is not a clean relative one, or a digest that is none."""
    _check_paths(files)
    return {path: Digest.parse(text) for path, text in files.items()}


def _check(request: CreateRequest, base: Model | None, files: Mapping[str, Digest]) -> None:
    if base is None and not files:
        raise BadRequest("neither 'from' or 'files' was specified")
    _check_paths((*files, *request.adapters, *request.draft_files))
    if len(request.adapters) > 1 and not any(path.endswith(".safetensors") for path in request.adapters):
        raise BadRequest("only one adapter is currently supported")


def _check_paths(paths: Iterable[str]) -> None:
    """Conversions lay files out under these names: none may lead out of a folder."""
    for path in paths:
        clean = PurePosixPath(path)
        if clean.is_absolute() or ".." in clean.parts or str(clean) != path or path == ".":
            raise BadRequest("file path must be relative")


def _config(request: CreateRequest, base: Model | None, headers: list[Header]) -> ModelConfig:
    old = base.config if base is not None else ModelConfig()
    weights = [header.gguf for header in headers if header.kind == "model"]
    families = tuple(header.gguf.architecture for header in headers if header.kind not in ("adapter", "draft"))
    drafts = [header.gguf.architecture for header in headers if header.kind == "draft"]
    config = replace(
        old,
        model_families=families or old.model_families,
        renderer=request.renderer or old.renderer,
        parser=request.parser or old.parser,
        requires=request.requires or old.requires,
    )
    if drafts:
        config = replace(config, extra={**config.extra, "draft": {"model_format": "gguf", "architecture": drafts[-1]}})
    if weights:
        family = weights[0].architecture
        config = replace(
            config,
            model_family=family,
            model_type=human_number(weights[0].parameter_count),
            file_type=said_type(weights[0]),
        )
    return _overridden(config, request.info)


def _family_defaults(config: ModelConfig, headers: list[Header], tools: Tools) -> FamilyDefaults | None:
    """The defaults of the weights' family, for a model that names neither a renderer nor a parser."""
    weights = [header.gguf for header in headers if header.kind == "model"]
    if not weights or config.renderer or config.parser:
        return None
    return tools.family_defaults(weights[0].architecture)


def _overridden(config: ModelConfig, info: Mapping[str, Any]) -> ModelConfig:
    """Put the request's ``info`` over what the files say."""
    texts = {
        field: _info_text(info, key)
        for key, field in (
            ("model_family", "model_family"),
            ("base_name", "base_name"),
            ("quantization_level", "file_type"),
            ("parameter_size", "model_type"),
        )
    }
    lengths = {key: _info_length(info, key) for key in ("context_length", "embedding_length")}
    changes: dict[str, Any] = {key: value for key, value in (texts | lengths).items() if value}
    if texts["model_family"]:
        changes["model_families"] = (texts["model_family"],)
    added = info.get("capabilities")
    if isinstance(added, (list, tuple)):
        changes["capabilities"] = (*config.capabilities, *(str(item) for item in added))
    return replace(config, **changes)


def _info_text(info: Mapping[str, Any], key: str) -> str:
    value = info.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f'info field "{key}" must be a string')
    return value or ""


def _info_length(info: Mapping[str, Any], key: str) -> int:
    value = info.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f'info field "{key}" must be a number')
    if value < 0 or value != value // 1:
        raise BadRequest(f'info field "{key}" must be a non-negative integer')
    return int(value)
