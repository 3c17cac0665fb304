"""Create a model: collect its layers, write its config and its manifest, with Ollama's order and status lines.

The blobs of all files are stored, and templates are validated, before this runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import GGUF, Layer, Model, ModelConfig, TokenizerVocabulary, draft_mismatch
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.api.parts import check_parts
from ollama_nb.api.requests import CreateRequest
from ollama_nb.api.units import human_number
from ollama_nb.errors import BadRequest
from ollama_nb.store import manifest
from ollama_nb.store.blobs import digest_of
from ollama_nb.store.gguf import gguf_kind
from ollama_nb.store.quantization import FLOATS, declared_type, parse_type, type_of
from ollama_nb.store.sources import CreateTools, FamilyDefaults, GgufSource, GgufSources, KnownTemplate
from ollama_nb.store.store import Store

_TEXT = (1, 6)  # token types that are plain text: normal and byte


def vocabulary_of(gguf: GGUF) -> TokenizerVocabulary | None:
    """Return the vocabulary of a GGUF header that was read with its arrays; None if it has no tokens.

    All tokens other than plain text count as markup. The engine treats more tokens as markup than files declare, and a
    draft model that the engine would accept must not be rejected here.
    """
    tokens, types = (gguf.metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    plain = types if isinstance(types, list) and len(types) == len(tokens) else [1] * len(tokens)
    spelled = [token.encode("utf-8", "replace") for token in tokens]
    return TokenizerVocabulary(
        str(gguf.metadata.get("tokenizer.ggml.model")), spelled, lambda token: plain[token] not in _TEXT
    )


@dataclass(frozen=True, slots=True)
class GgufLayer:
    """A layer that is a GGUF file."""

    kind: str
    gguf: GGUF


class LayerBuilder:
    """Collects the layers of a model, each with its status line."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._statuses: dict[Digest, str] = {}
        self.layers: list[Layer] = []
        self.headers: list[GgufLayer] = []
        self.parameters: dict[str, Any] = {}

    @property
    def weights(self) -> GGUF | None:
        """The GGUF header of the model's weights."""
        return next((header.gguf for header in self.headers if header.kind == "model"), None)

    def inherit(self, base: Model) -> None:
        """Copy all layers of a model; each records its origin in ``from``."""
        for layer in base.manifest.layers:
            self.layers.append(replace(layer, from_=base.name.short))
            if layer.kind in ("model", "projector"):
                self.headers.append(GgufLayer(layer.kind, self._store.gguf_at(self._store.blobs.find(layer.digest))))
        self.parameters = dict(base.params)

    def add(self, source: GgufSource, *, adapter: bool = False) -> None:
        """Add a GGUF as the kind of layer that its header declares."""
        kind = gguf_kind(source.gguf)
        if adapter and kind != "adapter":
            raise BadRequest(f"{source.path} is not an adapter: its general.type is not 'adapter'")
        if kind == "adapter" and any(layer.kind == "adapter" and not layer.from_ for layer in self.layers):
            raise BadRequest("only one adapter is currently supported")
        self._add(kind, source)

    def add_draft(self, source: GgufSource) -> None:
        """Add a GGUF as draft model; it replaces an inherited one."""
        kind = gguf_kind(source.gguf)
        if kind != "model":
            raise BadRequest(f"{source.path} cannot be used as draft model: it is a GGUF of the kind '{kind}'")
        self.layers = [layer for layer in self.layers if layer.kind != "draft"]
        self._add("draft", source)

    def check_draft(self) -> None:
        """Raise BadRequest if the draft model has another vocabulary than the model."""
        model, draft = (self._vocabulary(kind) for kind in ("model", "draft"))
        if model and draft and (reason := draft_mismatch(model, draft)):
            raise BadRequest(f"the draft model cannot be used: {reason}")

    def quantize(self, sources: GgufSources, wanted: str) -> None:
        """Replace the weights by weights of the type ``wanted``."""
        headers = iter([header for header in self.headers if header.kind == "model"])
        for at, layer in enumerate(self.layers):
            if layer.kind == "model":
                header = next(headers)
                made = sources.quantize(GgufSource("", layer.digest, header.gguf), wanted)
                if made.digest != layer.digest:
                    self.layers[at] = self._layer("model", made)
                    self.headers[self.headers.index(header)] = GgufLayer("model", made.gguf)

    def detect_template(self, recognise: Callable[[str], KnownTemplate | None]) -> None:
        """Add the known template, with its parameters, that corresponds to a file's chat template, if there is one."""
        for header in list(self.headers):
            text = header.gguf.metadata.get("tokenizer.chat_template")
            known = recognise(text) if isinstance(text, str) and text else None
            if known is None:
                continue
            layer = self._text("template", known.text.encode())
            self._statuses[layer.digest] = f"using autodetected template {known.name}"
            self.layers.append(layer)
            if known.parameters:
                self.layers.append(self._text("params", manifest.encode_params(known.parameters)))
                self.parameters = dict(known.parameters)

    def add_texts(self, request: CreateRequest, parameters: Mapping[str, Any]) -> None:
        """Add template, system prompt, licenses, parameters and messages. All but licenses replace inherited layers."""
        if request.template:
            self._replace("template", request.template.encode())
        if request.system:
            self._replace("system", request.system.encode())
        for text in request.licenses:
            if text:
                self.layers.append(self._text("license", text.encode()))
        if parameters:
            self._replace("params", manifest.encode_params(parameters))
        if request.messages:
            self._replace("messages", manifest.encode_messages(request.messages))

    def config(self, config: ModelConfig) -> Layer:
        """Store the config and return its layer."""
        data = manifest.encode_config(config)
        return manifest.config_layer(self._store.blobs.add(data), len(data))

    def statuses(self) -> Iterable[str]:
        """Yield one status line per layer, in the order of the manifest."""
        for layer in self.layers:
            yield self._statuses.get(layer.digest, f"using existing layer {layer.digest}")

    def _vocabulary(self, kind: str) -> TokenizerVocabulary | None:
        """Return the vocabulary of the first layer of a kind, or None."""
        digests = [layer.digest for layer in self.layers if layer.kind == kind]
        if not digests:
            return None
        return vocabulary_of(self._store.gguf_at(self._store.blobs.find(digests[0]), arrays=True))

    def _add(self, kind: str, source: GgufSource) -> None:
        self.layers.append(self._layer(kind, source))
        self.headers.append(GgufLayer(kind, source.gguf))

    def _layer(self, kind: str, source: GgufSource) -> Layer:
        if source.fresh:
            self._statuses[source.digest] = f"creating new layer {source.digest}"
        return manifest.layer(kind, source.digest, self._store.blobs.size(source.digest) or 0)

    def _replace(self, kind: str, data: bytes) -> None:
        old = ("template", "prompt") if kind == "template" else (kind,)
        self.layers = [layer for layer in self.layers if layer.kind not in old]
        self.layers.append(self._text(kind, data))

    def _text(self, kind: str, data: bytes) -> Layer:
        digest = digest_of(data)
        if not self._store.blobs.has(digest):
            self._statuses[digest] = f"creating new layer {digest}"
        return manifest.layer(kind, self._store.blobs.add(data), len(data))


def assemble(
    store: Store,
    request: CreateRequest,
    *,
    base: Model | None,
    files: Mapping[str, Digest],
    report: Report,
    tools: CreateTools | None = None,
) -> None:
    """Make the model ``request.model`` from ``base``, from stored ``files`` (path → digest), or from both.

    Blocking. Raises BadRequest, CorruptModel or NotFound for what the request asks wrongly; the store then keeps at
    most blobs that no model uses. Without ``tools`` nothing is converted and no template or family recognised.
    """
    name = ModelName.parse(request.model)
    _check(request, base, files)
    tools = tools or CreateTools()
    layers = _collect_layers(store, request, base, files, report, tools)
    config = _build_config(request, base, layers.headers)
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


def _collect_layers(
    store: Store,
    request: CreateRequest,
    base: Model | None,
    files: Mapping[str, Digest],
    report: Report,
    tools: CreateTools,
) -> LayerBuilder:
    """Collect the layers that are files, in Ollama's order: inherited, models, their template, adapter, draft."""
    wanted = parse_type(request.quantize) if request.quantize else ""
    sources, layers = GgufSources(store, tools, report), LayerBuilder(store)
    if base is not None:
        layers.inherit(base)
    if files:
        inherited = base.name.short if base is not None and base.weights is not None else ""
        for source in sources.model(files, wanted, base=inherited):
            layers.add(source)
        layers.detect_template(tools.recognise)
    if request.adapters:
        for source in sources.adapter(read_files(request.adapters), layers.weights):
            layers.add(source, adapter=True)
    if request.draft_files:
        layers.add_draft(_prepare_draft(sources, request))
        layers.check_draft()
    if wanted:
        layers.quantize(sources, wanted)
    return layers


def _prepare_draft(sources: GgufSources, request: CreateRequest) -> GgufSource:
    wanted = parse_type(request.draft_quantize) if request.draft_quantize else ""
    found = sources.model(read_files(request.draft_files), wanted)
    if len(found) > 1:
        raise BadRequest("only one draft model is supported")
    if wanted and (kind := type_of(found[0].gguf)) not in FLOATS:
        raise BadRequest(f"draft quantization requires an unquantized draft model, got {kind}")
    return sources.quantize(found[0], wanted) if wanted else found[0]


def read_files(files: Mapping[str, str]) -> dict[str, Digest]:
    """Parse the files of a request. Raises BadRequest for an invalid digest, an unsafe path or a missing part."""
    _check_paths(files)
    check_parts(files)
    return {path: Digest.parse(text) for path, text in files.items()}


def _check(request: CreateRequest, base: Model | None, files: Mapping[str, Digest]) -> None:
    if base is None and not files:
        raise BadRequest("neither 'from' or 'files' was specified")
    _check_paths((*files, *request.adapters, *request.draft_files))
    if len(request.adapters) > 1 and not any(path.endswith(".safetensors") for path in request.adapters):
        raise BadRequest("only one adapter is currently supported")


def _check_paths(paths: Iterable[str]) -> None:
    """Reject paths that leave their folder: conversions create files under these names."""
    for path in paths:
        clean = PurePosixPath(path)
        if clean.is_absolute() or ".." in clean.parts or str(clean) != path or path == ".":
            raise BadRequest("file path must be relative")


def _build_config(request: CreateRequest, base: Model | None, headers: list[GgufLayer]) -> ModelConfig:
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
            file_type=declared_type(weights[0]),
        )
    return _apply_info(config, request.info)


def _family_defaults(config: ModelConfig, headers: list[GgufLayer], tools: CreateTools) -> FamilyDefaults | None:
    """The defaults of the weights' family, for a model that names neither a renderer nor a parser."""
    weights = [header.gguf for header in headers if header.kind == "model"]
    if not weights or config.renderer or config.parser:
        return None
    return tools.family_defaults(weights[0].architecture)


def _apply_info(config: ModelConfig, info: Mapping[str, Any]) -> ModelConfig:
    """Override config values by the ``info`` of the request."""
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
