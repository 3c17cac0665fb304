"""From a create request to a model in the store: layers, config, manifest, in Ollama's order and with its status lines.

The blobs of all files are stored before this begins, and templates were parsed by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ollama_nb.api.chat import CreateRequest
from ollama_nb.api.events import Progress
from ollama_nb.api.models import GGUF, Layer, Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.api.units import human_number
from ollama_nb.errors import BadRequest, NotFound
from ollama_nb.store import manifest
from ollama_nb.store.blobs import digest_of
from ollama_nb.store.ggml import FILE_TYPES
from ollama_nb.store.gguf import is_gguf
from ollama_nb.store.store import Store

Report = Callable[[Progress], None]

_FAMILY_DEFAULTS = {
    "gemma4": "gemma4",
    "laguna": "laguna",
    "nemotron_h": "nemotron-3-nano",
    "nemotron_h_moe": "nemotron-3-nano",
    "nemotron_h_omni": "nemotron-3-nano",
}
"""Architecture → renderer and parser for models that come from files and name none."""

_NOT_YET = "is not supported by this version yet"


def assemble(
    store: Store, request: CreateRequest, *, base: Model | None, files: Mapping[str, Digest], report: Report
) -> None:
    """Make the model ``request.model`` from ``base``, from stored ``files`` (path → digest), or from both.

    Blocking. Raises BadRequest, CorruptModel or NotFound for what the request asks wrongly; the store then keeps at
    most blobs that no model uses.
    """
    name = ModelName.parse(request.model)
    _check(request, base, files)
    maker = _Maker(store, report)
    if base is not None:
        maker.inherit(base)
    maker.add_files(files)
    for path, text in request.adapters.items():
        maker.add_gguf(path, Digest.parse(text), adapter=True)
    for path, text in request.draft_files.items():
        maker.add_draft(path, Digest.parse(text))
    config = _config(request, base, maker.headers)
    maker.add_texts(request, _parameters(request, config, base))
    for status in maker.statuses():
        report(Progress(status))
    report(Progress("writing manifest"))
    store.write_manifest(name, maker.config(config), maker.layers)
    report(Progress("success"))


def _check(request: CreateRequest, base: Model | None, files: Mapping[str, Digest]) -> None:
    if base is None and not files:
        raise BadRequest("neither 'from' or 'files' was specified")
    for path in (*files, *request.adapters, *request.draft_files):
        clean = PurePosixPath(path)
        if clean.is_absolute() or ".." in clean.parts or str(clean) != path or path == ".":
            raise BadRequest("file path must be relative")
        if path.endswith(".safetensors"):
            raise BadRequest(f"{path}: importing safetensors {_NOT_YET}; convert the model to GGUF first")
    if len(request.adapters) > 1:
        raise BadRequest("only one adapter is currently supported")
    if len(request.draft_files) > 1:
        raise BadRequest("only one draft model is supported")
    if request.quantize:
        raise BadRequest(f"quantizing {_NOT_YET}; create the model without it")


@dataclass(frozen=True, slots=True)
class _Header:
    """A GGUF among the layers."""

    kind: str
    gguf: GGUF


class _Maker:
    """The layers as they come together, each with the status line that it gets."""

    def __init__(self, store: Store, report: Report) -> None:
        self._store = store
        self._report = report
        self._new: set[Digest] = set()
        self.layers: list[Layer] = []
        self.headers: list[_Header] = []

    def inherit(self, base: Model) -> None:
        """Take over all layers of a model; each notes where it is from."""
        for layer in base.manifest.layers:
            self.layers.append(replace(layer, from_=base.name.short))
            if layer.kind in ("model", "projector"):
                self.headers.append(_Header(layer.kind, self._store.gguf_at(self._store.blobs.path(layer.digest))))

    def add_files(self, files: Mapping[str, Digest]) -> None:
        if files and not any(path.endswith(".gguf") or self._is_gguf(digest) for path, digest in files.items()):
            raise BadRequest("unknown type")
        for path, digest in files.items():
            self.add_gguf(path, digest)

    def add_gguf(self, path: str, digest: Digest, *, adapter: bool = False) -> None:
        """Add a stored GGUF file in the role that its header names."""
        if not self._is_gguf(digest):
            raise BadRequest("supplied file was not in GGUF format")
        self._report(Progress("parsing GGUF"))
        gguf = self._store.gguf_at(self._store.blobs.path(digest))
        kind = gguf_kind(gguf)
        if adapter and kind != "adapter":
            raise BadRequest(f"{path} is no adapter: its general.type is not 'adapter'")
        if _number(gguf.metadata.get("split.count")) > 1:
            raise BadRequest(f"{path}: a GGUF in several parts {_NOT_YET}; merge it with llama-gguf-split --merge")
        if kind == "adapter" and any(layer.kind == "adapter" and not layer.from_ for layer in self.layers):
            raise BadRequest("only one adapter is currently supported")
        self.layers.append(manifest.layer(kind, digest, self._store.blobs.size(digest) or 0))
        self.headers.append(_Header(kind, gguf))

    def add_draft(self, path: str, digest: Digest) -> None:
        """Add a stored GGUF file as the model that guesses for this one; it replaces an inherited one."""
        self.layers = [layer for layer in self.layers if layer.kind != "draft"]
        self.add_gguf(path, digest)
        layer, header = self.layers.pop(), self.headers.pop()
        if header.kind != "model":
            raise BadRequest(f"{path} is no model that could draft: it is a GGUF of the kind '{header.kind}'")
        self.layers.append(manifest.layer("draft", digest, layer.size))
        self.headers.append(_Header("draft", header.gguf))

    def add_texts(self, request: CreateRequest, parameters: Mapping[str, Any]) -> None:
        """Add template, system, licences, parameters and messages; all but licences replace what was inherited."""
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
        data = manifest.encode_config(config)
        return manifest.config_layer(self._store.blobs.add(data), len(data))

    def statuses(self) -> Iterable[str]:
        """One line per layer, in the order of the manifest."""
        for layer in self.layers:
            yield f"{'creating new' if layer.digest in self._new else 'using existing'} layer {layer.digest}"

    def _is_gguf(self, digest: Digest) -> bool:
        if not self._store.blobs.has(digest):
            raise NotFound(f'blob "{digest}" not found')
        return is_gguf(self._store.blobs.path(digest))

    def _replace(self, kind: str, data: bytes) -> None:
        old = ("template", "prompt") if kind == "template" else (kind,)
        self.layers = [layer for layer in self.layers if layer.kind not in old]
        self.layers.append(self._text(kind, data))

    def _text(self, kind: str, data: bytes) -> Layer:
        digest = digest_of(data)
        if not self._store.blobs.has(digest):
            self._new.add(digest)
        return manifest.layer(kind, self._store.blobs.add(data), len(data))


def gguf_kind(gguf: GGUF) -> str:
    """``model``, ``adapter`` or ``projector``."""
    named = gguf.metadata.get("general.type")
    if named == "adapter":
        return "adapter"
    if named in ("projector", "mmproj"):
        return "projector"
    if gguf.arch("block_count") is None:
        encoders = (gguf.arch("has_vision_encoder"), gguf.arch("has_audio_encoder"))
        if gguf.arch("vision.block_count") or (gguf.architecture == "clip" and any(encoders)):
            return "projector"
    return "model"


def file_type(gguf: GGUF) -> str:
    """The quantisation as configs name it. F32 is number 0, which Ollama reads as unknown."""
    number = _number(gguf.metadata.get("general.file_type"))
    return FILE_TYPES.get(number, "unknown") if number else "unknown"


def _config(request: CreateRequest, base: Model | None, headers: list[_Header]) -> ModelConfig:
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
            file_type=file_type(weights[0]),
        )
        if base is None and not config.renderer and not config.parser:
            default = _FAMILY_DEFAULTS.get(family, "")
            config = replace(config, renderer=default, parser=default)
    return _overridden(config, request.info)


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


def _parameters(request: CreateRequest, config: ModelConfig, base: Model | None) -> dict[str, Any]:
    """Inherited parameters, the request's own over them."""
    parameters = {**(base.params if base is not None else {}), **request.parameters}
    if base is None and config.parser == "gemma4" and not request.parser:
        parameters.setdefault("stop", ["<turn|>"])
    return parameters


def _number(value: Any) -> int:
    return value if type(value) is int else 0
