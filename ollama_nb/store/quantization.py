"""Which types a model can be quantised to, which models can, and which tensors stay finer than asked."""

from __future__ import annotations

from collections.abc import Mapping

from ollama_nb.api.models import GGUF
from ollama_nb.errors import BadRequest
from ollama_nb.store.ggml import FILE_TYPES

FLOATS = ("F32", "F16", "BF16")
"""The types that other types are made from."""

NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"})
"""Types so coarse that they need to know which weights matter: an importance matrix, measured on text."""

_SHORT = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_NOT_MADE = frozenset({"NVFP4"})
"""Read by llama.cpp, but not written."""
_NUMBERS = {name: number for number, name in FILE_TYPES.items() if name not in _NOT_MADE}
SUPPORTED = tuple(name for name in _NUMBERS if name not in NEED_IMPORTANCE)

_F16, _Q8_0 = 1, 8
_FINER: dict[str, dict[str, int]] = {
    "qwen35": {r"nextn\.eh_proj": _Q8_0},
    "qwen35moe": {r"nextn\.eh_proj": _Q8_0},
    "gemma3n": {"per_layer_token_embd": _F16},
    "deepseek2": {r"attn_(k_b|q_a|q_b|v_b|kv_a_mqa)\.": _Q8_0},
    "glmocr": {r"^(token_embd|output)\.weight": _F16},
    "glm4": {r"^(token_embd|output)\.weight": _F16},
}
_OTHER_SENSES = {r"^(a|mm|mtp|s|v)\.": _F16}
"""Eyes and ears inside a model's file, and its heads for several tokens, lose too much."""


def parse(text: str) -> str:
    """The type's own name, for any case and for short forms. Raises BadRequest for what cannot be made."""
    name = _SHORT.get(text.upper(), text.upper())
    if name in NEED_IMPORTANCE:
        raise BadRequest(f"{name} needs an importance matrix, which cannot be given here; the next larger type may do")
    if name not in SUPPORTED:
        raise BadRequest(f"unsupported quantization type {text} - supported types are {', '.join(SUPPORTED)}")
    return name


def number(name: str) -> int:
    """llama.cpp's number of a type that ``parse`` gave."""
    return _NUMBERS[name]


def said_type(gguf: GGUF) -> str:
    """The type that a file says it has, as configs name it. F32 is number 0, which Ollama reads as unknown."""
    said = gguf.metadata.get("general.file_type")
    return FILE_TYPES.get(said, "unknown") if type(said) is int and said else "unknown"


def type_of(gguf: GGUF) -> str:
    """The type that a file has: where it does not say, its tensors tell whether that is F32."""
    said = said_type(gguf)
    return "F32" if said == "unknown" and all(tensor.type == "F32" for tensor in gguf.tensors) else said


def kept(name: str, architecture: str) -> Mapping[str, int]:
    """Tensors, by expressions of their names, that get another type than the one asked for."""
    finer = _FINER.get(architecture, {}) if "_K" in name else {}
    return {**_OTHER_SENSES, **finer} if name not in FLOATS else {}
