"""LoRA adapters: small changes to a model's weights, chosen by each request.

Requests with and without them share the weights in memory. What a sequence has in memory was computed with its
adapters, so nothing of it serves a request with others. Rule: a file is looked over here before native code sees it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec

from ollama_nb.errors import BadRequest, OllamaError
from ollama_nb.store.gguf import read_gguf


class Adapter(msgspec.Struct, frozen=True, array_like=True):
    """A GGUF file, and how strongly it changes the weights."""

    path: str
    scale: float = 1.0


Adapters = tuple[Adapter, ...]

_ALPHA = "adapter.lora.alpha"
_FLOAT32 = struct.pack("<I", 6)


def look_over(path: str, architecture: str) -> None:
    """Raises BadRequest that names the file, for one that is no LoRA adapter of such a model."""
    try:
        gguf = read_gguf(Path(path))
    except OllamaError as error:
        raise unusable(path, error.message) from error
    facts = gguf.metadata
    if facts.get("general.type") != "adapter" or facts.get("adapter.type") != "lora":
        raise unusable(path, "it is no LoRA adapter, or does not say so (general.type, adapter.type)")
    if gguf.architecture != architecture:
        raise unusable(path, f'it was made for the architecture "{gguf.architecture}", the model is "{architecture}"')
    if _ALPHA in facts and not _is_float32(path, _ALPHA.encode()):
        raise unusable(path, f"{_ALPHA} is not a number of the type float32")
    if not any(tensor.name.endswith(".lora_a") for tensor in gguf.tensors):
        raise unusable(path, "it changes no weights")


def _is_float32(path: str, key: bytes) -> bool:
    """Whether a metadata value near the beginning of the file has that type; native code ends the process otherwise."""
    with Path(path).open("rb") as file:
        header = file.read(1 << 20)
    before = struct.pack("<Q", len(key)) + key
    return before + _FLOAT32 in header


def unusable(path: str, reason: Any) -> BadRequest:
    return BadRequest(f"cannot use the adapter {Path(path).name}: {reason}")
