"""The layers of a model that is being made: files, texts, and the line that each of them gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ollama_nb.api.chat import CreateRequest
from ollama_nb.api.models import GGUF, Layer, Model, ModelConfig
from ollama_nb.api.names import Digest
from ollama_nb.api.vocabulary import Vocabulary, misfit
from ollama_nb.errors import BadRequest
from ollama_nb.store import manifest
from ollama_nb.store.blobs import digest_of
from ollama_nb.store.drafts import vocabulary_of
from ollama_nb.store.sources import Recognised, Source, Sources
from ollama_nb.store.store import Store


@dataclass(frozen=True, slots=True)
class Header:
    """A GGUF among the layers."""

    kind: str
    gguf: GGUF


class Layers:
    """The layers as they come together, each with the status line that it gets."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._statuses: dict[Digest, str] = {}
        self.layers: list[Layer] = []
        self.headers: list[Header] = []
        self.parameters: dict[str, Any] = {}

    @property
    def weights(self) -> GGUF | None:
        """The header of the model itself."""
        return next((header.gguf for header in self.headers if header.kind == "model"), None)

    def inherit(self, base: Model) -> None:
        """Take over all layers of a model; each notes where it is from."""
        for layer in base.manifest.layers:
            self.layers.append(replace(layer, from_=base.name.short))
            if layer.kind in ("model", "projector"):
                self.headers.append(Header(layer.kind, self._store.gguf_at(self._store.blobs.find(layer.digest))))
        self.parameters = dict(base.params)

    def add(self, source: Source, *, adapter: bool = False) -> None:
        """Add a GGUF in the role that its header names."""
        kind = gguf_kind(source.gguf)
        if adapter and kind != "adapter":
            raise BadRequest(f"{source.path} is no adapter: its general.type is not 'adapter'")
        if kind == "adapter" and any(layer.kind == "adapter" and not layer.from_ for layer in self.layers):
            raise BadRequest("only one adapter is currently supported")
        self._add(kind, source)

    def add_draft(self, source: Source) -> None:
        """Add a GGUF as the model that guesses for this one; it replaces an inherited one."""
        kind = gguf_kind(source.gguf)
        if kind != "model":
            raise BadRequest(f"{source.path} is no model that could draft: it is a GGUF of the kind '{kind}'")
        self.layers = [layer for layer in self.layers if layer.kind != "draft"]
        self._add("draft", source)

    def check_draft(self) -> None:
        """Raises BadRequest for a draft model that numbers its tokens in another way than the model does."""
        model, draft = (self._vocabulary(kind) for kind in ("model", "draft"))
        if model and draft and (reason := misfit(model, draft)):
            raise BadRequest(f"the draft model cannot be used: {reason}")

    def quantize(self, sources: Sources, wanted: str) -> None:
        """Put the weights in as another type, in the place of those that are there."""
        headers = iter([header for header in self.headers if header.kind == "model"])
        for at, layer in enumerate(self.layers):
            if layer.kind == "model":
                header = next(headers)
                made = sources.quantized(Source("", layer.digest, header.gguf), wanted)
                if made.digest != layer.digest:
                    self.layers[at] = self._layer("model", made)
                    self.headers[self.headers.index(header)] = Header("model", made.gguf)

    def detect_template(self, recognise: Callable[[str], Recognised | None]) -> None:
        """Where a file's chat template is a known one, add that, and the stop strings that belong to it."""
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
            yield self._statuses.get(layer.digest, f"using existing layer {layer.digest}")

    def _vocabulary(self, kind: str) -> Vocabulary | None:
        """Of the first layer of that kind; None where the file holds no tokens."""
        digests = [layer.digest for layer in self.layers if layer.kind == kind]
        if not digests:
            return None
        return vocabulary_of(self._store.gguf_at(self._store.blobs.find(digests[0]), arrays=True))

    def _add(self, kind: str, source: Source) -> None:
        self.layers.append(self._layer(kind, source))
        self.headers.append(Header(kind, source.gguf))

    def _layer(self, kind: str, source: Source) -> Layer:
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
