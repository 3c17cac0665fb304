"""Manifests, configs and JSON layers: parsed leniently, encoded byte for byte as Ollama does."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ollama_nb.api.encode import filled, go_json, message_object
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.models import CONFIG_TYPE, LAYER_PREFIX, MANIFEST_TYPE, Layer, Manifest, Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.api.units import human_bytes
from ollama_nb.errors import BadRequest, CorruptModel
from ollama_nb.store.blobs import BlobStore

GGUF_KINDS = ("model", "adapter", "projector", "draft")
"""Layer kinds whose blobs are GGUF files."""

MAX_JSON = 4 << 20
"""Bytes; the size limit of a manifest, a config or a JSON layer."""
MAX_LAYERS = 1000  # layers of a model that is fetched
MAX_BLOB = 10**13
"""Bytes; the size limit of a blob that is fetched. It also limits the parts of its download (to 10,000)."""

T = TypeVar("T")

_CONFIG_TEXTS = (
    "model_format",
    "model_family",
    "model_type",
    "file_type",
    "renderer",
    "parser",
    "requires",
    "remote_host",
    "remote_model",
    "base_name",
)
_TEXT_KINDS = ("template", "prompt", "system", "params", "messages", "license")
_CONFIG_LENGTHS = ("context_length", "embedding_length")
MAX_TEXT = 4 << 20
"""Bytes; the size limit of a config or a text layer."""


def layer(kind: str, digest: Digest, size: int, *, from_: str = "") -> Layer:
    """Return a layer of one of Ollama's kinds (``model``, ``template``, …)."""
    return Layer(LAYER_PREFIX + kind, digest, size, from_)


def config_layer(digest: Digest, size: int) -> Layer:
    """Return the layer of a config."""
    return Layer(CONFIG_TYPE, digest, size)


def parse_manifest(raw: bytes) -> Manifest:
    """Parse a manifest. Raises CorruptModel if it is not valid."""
    body = _parse_object(raw, "manifest")
    layers: list[Any] = _get_typed(body, "layers", list, [])
    return Manifest(_parse_layer(body.get("config")), tuple(_parse_layer(item) for item in layers), raw)


def check_limits(manifest: Manifest) -> None:
    """Raise CorruptModel unless the numbers of a manifest from elsewhere are within the limits.

    Called before anything is planned, requested or allocated by these numbers.
    """
    if len(manifest.layers) > MAX_LAYERS:
        raise CorruptModel(f"the manifest has {len(manifest.layers)} layers, more than {MAX_LAYERS}")
    sizes: dict[Digest, int] = {}
    for layer in (*manifest.layers, manifest.config):
        is_text = layer is manifest.config or layer.kind in _TEXT_KINDS
        limit = MAX_TEXT if is_text else MAX_BLOB
        if layer.size > limit:
            size = human_bytes(layer.size) if layer.size < 1 << 63 else "more than 2**63 bytes"
            raise CorruptModel(
                f"the manifest gives {layer.digest.short} ({layer.media_type or 'no media type'}) a size of {size}, "
                f"more than the limit of {human_bytes(limit)}"
            )
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise CorruptModel(f"the manifest gives {layer.digest.short} two different sizes")


def encode_manifest(config: Layer, layers: Iterable[Layer]) -> bytes:
    """Encode a manifest."""
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _layer_object(config),
        "layers": [_layer_object(item) for item in layers],
    }
    return _encode_line(body)


def parse_config(raw: bytes) -> ModelConfig:
    """Parse a config. Raises CorruptModel if it is not a JSON object or a known key has the wrong type."""
    body = _parse_object(raw, "config")
    known: dict[str, Any] = {key: _get_typed(body, key, str, "") for key in _CONFIG_TEXTS}
    known |= {key: _get_typed(body, key, int, 0) for key in _CONFIG_LENGTHS}
    known["model_families"] = _get_strings(body, "model_families")
    known["capabilities"] = _get_strings(body, "capabilities") or ()
    extra = {key: value for key, value in body.items() if key not in known and key not in ("architecture", "os")}
    return ModelConfig(**known, extra=extra)


def encode_config(config: ModelConfig) -> bytes:
    """Encode a config."""
    families = config.model_families
    body: dict[str, Any] = {
        "model_format": config.model_format,
        "model_family": config.model_family,
        "model_families": None if families is None else list(families),
        "model_type": config.model_type,
        "file_type": config.file_type,
    }
    optional: dict[str, Any] = {
        "renderer": config.renderer,
        "parser": config.parser,
        "requires": config.requires,
        "remote_host": config.remote_host,
        "remote_model": config.remote_model,
        "capabilities": list(config.capabilities),
        "context_length": config.context_length,
        "embedding_length": config.embedding_length,
        "base_name": config.base_name,
        "draft": config.extra.get("draft"),
    }
    return _encode_line(body | filled(optional) | {"architecture": "amd64", "os": "linux"})


def parse_params(raw: bytes) -> dict[str, Any]:
    """Parse a params layer. Raises CorruptModel if it is not a JSON object."""
    return _parse_object(raw, "params layer")


def encode_params(params: Mapping[str, Any]) -> bytes:
    """Encode a params layer, with sorted keys."""
    return _encode_line(params, sort_keys=True)


def parse_messages(raw: bytes) -> tuple[Message, ...]:
    """Parse a messages layer. Raises CorruptModel if it is not valid."""
    body = _parse_json(raw, "messages layer")
    if not isinstance(body, list):
        raise CorruptModel("the messages layer is not a JSON array")
    return tuple(_parse_message(item) for item in body)


def encode_messages(messages: Iterable[Message]) -> bytes:
    """Encode a messages layer."""
    return _encode_line([message_object(message) for message in messages])


def _encode_line(value: Any, *, sort_keys: bool = False) -> bytes:
    return (go_json(value, sort_keys=sort_keys) + "\n").encode()


def _parse_json(raw: bytes, what: str) -> Any:
    if len(raw) > MAX_JSON:
        raise CorruptModel(f"the {what} is larger than {MAX_JSON} bytes")
    try:
        return json.loads(raw, parse_constant=_reject_constant, parse_float=_parse_finite)
    except (ValueError, RecursionError) as error:
        raise CorruptModel(f"the {what} is not valid JSON: {error}") from error


def _parse_finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _reject_constant(text)


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _parse_object(raw: bytes, what: str) -> dict[str, Any]:
    body = _parse_json(raw, what)
    if not isinstance(body, dict):
        raise CorruptModel(f"the {what} is not a JSON object")
    return body


def _get_typed(body: Mapping[str, Any], key: str, kind: type[T], default: T) -> T:
    """Return the value of a key, or the default if it is absent or null, as in Go."""
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, kind):
        raise CorruptModel(f'"{key}" has a value of the wrong type')
    return value


def _get_strings(body: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    if body.get(key) is None:
        return None
    value: list[Any] = _get_typed(body, key, list, [])
    if not all(isinstance(item, str) for item in value):
        raise CorruptModel(f'"{key}" is not a list of strings')
    return tuple(value)


def _parse_layer(item: Any) -> Layer:
    if not isinstance(item, dict):
        raise CorruptModel("a layer of the manifest is not a JSON object")
    size = _get_typed(item, "size", int, 0)
    if size < 0:
        raise CorruptModel("a layer of the manifest has a negative size")
    try:
        digest = Digest.parse(_get_typed(item, "digest", str, ""))
    except BadRequest as error:
        raise CorruptModel("a layer of the manifest has an invalid digest") from error
    texts = {key: _get_typed(item, key, str, "") for key in ("mediaType", "from", "name")}
    return Layer(texts["mediaType"], digest, size, texts["from"], texts["name"])


def _layer_object(item: Layer) -> dict[str, Any]:
    body: dict[str, Any] = {"mediaType": item.media_type, "digest": str(item.digest), "size": item.size}
    return body | filled({"from": item.from_, "name": item.name})


def _parse_message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise CorruptModel("a stored message is not a JSON object")
    texts = {
        key: _get_typed(item, key, str, "") for key in ("role", "content", "thinking", "tool_name", "tool_call_id")
    }
    try:
        images = tuple(base64.b64decode(image, validate=True) for image in _get_strings(item, "images") or ())
    except binascii.Error as error:
        raise CorruptModel("an image of a stored message is not valid base64") from error
    calls: list[Any] = _get_typed(item, "tool_calls", list, [])
    return Message(**texts, images=images, tool_calls=tuple(_parse_tool_call(call) for call in calls))


def _parse_tool_call(item: Any) -> ToolCall:
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict):
        raise CorruptModel("a stored tool call has no function")
    return ToolCall(
        _get_typed(function, "name", str, ""),
        _get_typed(function, "arguments", dict, {}),
        _get_typed(item, "id", str, ""),
        _get_typed(function, "index", int, 0),
    )


def read_model(blobs: BlobStore, name: ModelName, manifest: Manifest, modified_at: float) -> Model:
    """Read the model that a manifest describes. The existence of its GGUF files is not checked.

    Of several layers of one kind the last one counts, except for adapters, projectors and licenses. Raises NotFound,
    StoreError or CorruptModel if the config or a text layer is missing, too large or invalid.
    """
    by_kind: dict[str, list[Layer]] = {}
    for layer in manifest.layers:
        kind = "template" if layer.kind == "prompt" else layer.kind  # early models use "prompt"
        by_kind.setdefault(kind, []).append(layer)

    def read(layer: Layer) -> bytes:
        return blobs.read(layer.digest, MAX_TEXT)

    def files(kind: str) -> tuple[Path, ...]:
        return tuple(blobs.find(layer.digest) for layer in by_kind.get(kind, ()))

    def last(kind: str) -> bytes:
        return read(by_kind[kind][-1]) if kind in by_kind else b""

    weights = by_kind["model"][-1].digest if "model" in by_kind else None
    params, messages = last("params"), last("messages")
    return Model(
        name=name,
        digest=hashlib.sha256(manifest.raw).hexdigest(),
        manifest=manifest,
        config=parse_config(read(manifest.config)),
        modified_at=modified_at,
        size=sum(layer.size for layer in (*manifest.layers, manifest.config)),
        weights=None if weights is None else blobs.find(weights),
        weights_digest=weights,
        adapters=files("adapter"),
        projectors=files("projector"),
        draft=next(reversed(files("draft")), None),
        template=last("template").decode("utf-8", "replace") if "template" in by_kind else None,
        system=last("system").decode("utf-8", "replace"),
        params=parse_params(params) if params else {},
        messages=parse_messages(messages) if messages else (),
        licenses=tuple(read(layer).decode("utf-8", "replace") for layer in by_kind.get("license", ())),
    )
