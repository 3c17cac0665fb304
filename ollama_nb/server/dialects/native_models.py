"""The native dialect, models: the bodies of tags, show, ps and the queue."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ollama_nb.api.encode import escaped, filled, float32, go_json, go_string, message_object, shortest
from ollama_nb.api.messages import Message
from ollama_nb.api.models import GGUF, Listed, Model, Running, Shown
from ollama_nb.server.dialects.native_reply import encode
from ollama_nb.server.dialects.times import local
from ollama_nb.service.requests import QueueEntry

_HIDDEN = frozenset({"general.name", "tokenizer.chat_template"})
_LONG = 64


def tags(models: Iterable[Listed]) -> bytes:
    return encode({"models": [_listed(entry) for entry in models]})


def ps(models: Iterable[Running]) -> bytes:
    """Latest expiry first."""
    ordered = sorted(models, key=lambda entry: entry.expires_at, reverse=True)
    return encode({"models": [_running(entry) for entry in ordered]})


def show(shown: Shown, basename: str = "") -> bytes:
    """``basename``: told instead of the one in the file."""
    model, config = shown.model, shown.model.config
    parts: dict[str, str] = {}

    def put(key: str, value: Any, *, always: bool = False) -> None:
        if value or always:
            parts[key] = value if key in ("model_info", "projector_info") else go_json(value)

    put("license", shown.license)
    put("modelfile", shown.modelfile)
    put("parameters", shown.parameters)
    put("template", shown.template)
    put("system", shown.system)
    put("details", _details(model, shown.parent), always=True)
    put("messages", [message_object(Message(m.role, m.content)) for m in model.messages])
    put("remote_model", config.remote_model)
    put("remote_host", config.remote_host)
    put("model_info", _metadata(shown.gguf, basename), always=True)
    put("projector_info", _metadata(shown.projector) if shown.projector else "")
    put("tensors", _tensors(shown.gguf))
    put("capabilities", shown.capabilities)
    put("modified_at", local(model.modified_at), always=True)
    put("requires", config.requires)
    return ("{" + ",".join(f'"{key}":{value}' for key, value in parts.items()) + "}").encode()


def queue(entries: Iterable[QueueEntry]) -> bytes:
    """What is waiting and running: figures only, no prompt text; those of drafts where there were any."""

    def told(entry: QueueEntry) -> dict[str, Any]:
        found = {**dataclasses.asdict(entry), "created_at": local(entry.created_at)}
        if not entry.drafted_tokens:
            del found["drafted_tokens"], found["accepted_tokens"]
        return found

    return encode({"requests": [told(entry) for entry in entries]})


def _listed(entry: Listed) -> dict[str, Any]:
    model = entry.model
    details = _details(model, entry.parent)
    details |= filled({"context_length": entry.context_length, "embedding_length": entry.embedding_length})
    return {
        "name": model.name.short,
        "model": model.name.short,
        **filled({"remote_model": model.config.remote_model, "remote_host": model.config.remote_host}),
        "modified_at": local(model.modified_at),
        "size": model.size,
        "digest": model.digest,
        "details": details,
        **filled({"capabilities": entry.capabilities}),
    }


def _running(entry: Running) -> dict[str, Any]:
    return {
        "name": entry.model.name.short,
        "model": entry.model.name.short,
        "size": entry.size,
        "digest": entry.model.digest,
        "details": _details(entry.model, ""),
        "expires_at": local(entry.expires_at),
        "size_vram": entry.size_vram,
        "context_length": entry.context_length,
        **filled({"slots": entry.slots}),
    }


def _details(model: Model, parent: str) -> dict[str, Any]:
    config = model.config
    return {
        "parent_model": parent,
        "format": config.model_format,
        "family": config.model_family,
        "families": config.model_families,
        "parameter_size": config.model_type,
        "quantization_level": config.file_type,
    }


def _metadata(gguf: GGUF | None, basename: str = "") -> str:
    """GGUF metadata as a JSON object, keys sorted, with the number of parameters counted."""
    if gguf is None:
        return "{}"
    values = {key: value for key, value in gguf.metadata.items() if key not in _HIDDEN}
    values["general.parameter_count"] = gguf.parameter_count
    if basename:
        values["general.basename"] = basename
    return "{" + ",".join(f"{go_string(key)}:{_metadata_value(values[key])}" for key in sorted(values)) + "}"


def _metadata_value(value: Any) -> str:
    match value:
        case float():
            return _float32(value)
        case list() | tuple():
            return _array(value)
        case _:
            return go_json(value)


def _array(items: list[Any] | tuple[Any, ...]) -> str:
    """Vocabularies have hundreds of thousands of items: the C encoder writes them, Go's escapes are put in after."""
    if any(isinstance(item, float) for item in items[:1]):
        return "[" + ",".join(map(_float32, items)) + "]"
    if len(items) < _LONG:
        return go_json(items)
    return escaped(json.dumps(items, ensure_ascii=False, separators=(",", ":")))


def _float32(value: float) -> str:
    """The shortest text for what was a float32 in the file: ``0.00001``, not ``0.000009999999747378752``."""
    if not math.isfinite(value):
        return "null"
    return go_json(shortest(value) if float32(value) == value else value)


def _tensors(gguf: GGUF | None) -> list[Mapping[str, Any]]:
    return [{"name": t.name, "type": t.type, "shape": t.shape} for t in gguf.tensors] if gguf else []
