"""Models at rest: layers, manifests, configs, a resolved local model. Values only; the store reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_nb.api.messages import Message
from ollama_nb.api.names import Digest, ModelName

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_PREFIX = "application/vnd.ollama.image."


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob in its role. ``from_`` names the model that the layer was taken over from."""

    media_type: str
    digest: Digest
    size: int
    from_: str = ""
    name: str = ""

    @property
    def kind(self) -> str:
        """``model``, ``template``, ``params``, …; the full media type for foreign ones."""
        return self.media_type.removeprefix(LAYER_PREFIX)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest with the bytes that it was read from (its identity is their hash)."""

    config: Layer
    layers: tuple[Layer, ...]
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The config JSON of a model; ``extra`` keeps keys that we do not know."""

    model_format: str = "gguf"
    model_family: str = ""
    model_families: tuple[str, ...] | None = None
    model_type: str = ""
    file_type: str = "unknown"
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    remote_model: str = ""
    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    embedding_length: int = 0
    base_name: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a GGUF; ``shape`` in GGUF's own order (fastest first), ``offset`` from the start of the data."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count


@dataclass(frozen=True, slots=True)
class GGUF:
    """The header of a GGUF file. Arrays that the reader was told to leave out are None in ``metadata``."""

    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def arch(self, key: str, default: Any = None) -> Any:
        """``metadata["<architecture>.<key>"]``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def parameter_count(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Model:
    """A local model, resolved: where its weights lie and what it stores. ``template`` None: no template layer."""

    name: ModelName
    digest: str
    manifest: Manifest
    config: ModelConfig
    modified_at: float
    size: int
    weights: Path | None = None
    weights_digest: Digest | None = None
    adapters: tuple[Path, ...] = ()
    projectors: tuple[Path, ...] = ()
    draft: Path | None = None
    template: str | None = None
    system: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as ``/api/tags`` shows it; lengths are 0 when unknown."""

    model: Model
    capabilities: tuple[str, ...]
    parent: str = ""
    context_length: int = 0
    embedding_length: int = 0


@dataclass(frozen=True, slots=True)
class Shown:
    """A model as ``/api/show`` shows it: texts ready to print, headers as read (arrays None unless verbose)."""

    model: Model
    capabilities: tuple[str, ...]
    parent: str
    modelfile: str
    parameters: str
    template: str
    system: str
    license: str
    gguf: GGUF | None
    projector: GGUF | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A loaded model as ``/api/ps`` shows it; ``expires_at`` is Unix seconds (inf: never).

    ``slots``: how many requests it works on at the same time; 0 where that is not said.
    """

    model: Model
    size: int
    size_vram: int
    expires_at: float
    context_length: int
    slots: int = 0
