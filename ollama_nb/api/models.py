"""Stored models as values: layers, manifests, configs, GGUF headers, a resolved local model; and their vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """A blob and its role in a model. ``from_`` names the model that the layer was inherited from."""

    media_type: str
    digest: Digest
    size: int
    from_: str = ""
    name: str = ""

    @property
    def kind(self) -> str:
        """``model``, ``template``, ``params``, …; the full media type if it is not one of Ollama's."""
        return self.media_type.removeprefix(LAYER_PREFIX)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest and the bytes that it was parsed from; their hash identifies the model."""

    config: Layer
    layers: tuple[Layer, ...]
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The config JSON of a model; ``extra`` keeps unknown keys."""

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
    """One tensor of a GGUF file.

    ``shape`` is in GGUF's order (fastest dimension first), ``offset`` in bytes from the start of the tensor data.
    """

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
    """The header of a GGUF file. Arrays that the reader was asked to skip are None in ``metadata``."""

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
    """A local model with the paths of its weights and the contents of its layers.

    ``template`` is None for a model without a template layer; ``modified_at`` is Unix seconds, ``size`` bytes.
    """

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
    """A model as ``/api/tags`` lists it; unknown lengths are 0."""

    model: Model
    capabilities: tuple[str, ...]
    parent: str = ""
    context_length: int = 0
    embedding_length: int = 0


@dataclass(frozen=True, slots=True)
class Shown:
    """A model as ``/api/show`` describes it. Arrays in the GGUF headers are None unless the request is verbose."""

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
    """A loaded model as ``/api/ps`` lists it.

    Sizes are bytes, ``expires_at`` is Unix seconds (infinity for never). ``slots`` is the number of requests that the
    model handles at the same time; 0 if unknown.
    """

    model: Model
    size: int
    size_vram: int
    expires_at: float
    context_length: int
    slots: int = 0


VOCABULARY_PADDING = 128  # tokens; models of one family pad their vocabularies to different round sizes


@dataclass(frozen=True, slots=True)
class TokenizerVocabulary:
    """The tokenizer's type, all tokens as the model file spells them, and which of them are control tokens."""

    kind: str
    texts: Sequence[bytes]
    is_control: Callable[[int], bool]


def draft_mismatch(model: TokenizerVocabulary, draft: TokenizerVocabulary) -> str:
    """Why a draft model cannot draft for ``model``; empty if it can.

    Both must assign the same ids to the same texts; control tokens may be spelled differently.
    """
    if draft.kind != model.kind:
        return "its tokenizer has another type than the model's"
    if abs(len(draft.texts) - len(model.texts)) > VOCABULARY_PADDING:
        return f"it has {len(draft.texts)} tokens, the model has {len(model.texts)}"
    for token, pair in enumerate(zip(draft.texts, model.texts, strict=False)):
        if pair[0] != pair[1] and not (draft.is_control(token) and model.is_control(token)):
            drafted, text = (spelling.decode("utf-8", "replace") for spelling in pair)
            return f'its token {token} is "{drafted}", but "{text}" in the model'
    return ""
