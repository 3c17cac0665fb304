"""Tensor types and file types of ggml, and which models can be quantized to which types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ollama_nb.api.models import GGUF
from ollama_nb.errors import BadRequest


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor type. Each block of ``block`` elements takes ``size`` bytes."""

    name: str
    block: int
    size: int


TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}

FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""Names of ``general.file_type``. A missing or zero value is "unknown" in a model's config, as in Ollama."""

FLOATS = ("F32", "F16", "BF16")
"""The unquantized types, which can be quantized."""

NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"})
"""Low-bit types that require an importance matrix."""

_SHORT = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # short form: type
_NOT_MADE = frozenset({"NVFP4"})
"""Types that llama.cpp can read but not write."""
_NUMBERS = {name: number for number, name in FILE_TYPES.items() if name not in _NOT_MADE}
SUPPORTED = tuple(name for name in _NUMBERS if name not in NEED_IMPORTANCE)

_F16, _Q8_0 = 1, 8  # numbers of tensor types
_ARCHITECTURE_OVERRIDES: dict[str, dict[str, int]] = {
    "qwen35": {r"nextn\.eh_proj": _Q8_0},
    "qwen35moe": {r"nextn\.eh_proj": _Q8_0},
    "gemma3n": {"per_layer_token_embd": _F16},
    "deepseek2": {r"attn_(k_b|q_a|q_b|v_b|kv_a_mqa)\.": _Q8_0},
    "glmocr": {r"^(token_embd|output)\.weight": _F16},
    "glm4": {r"^(token_embd|output)\.weight": _F16},
}
_ENCODERS = {r"^(a|mm|mtp|s|v)\.": _F16}
"""Vision and audio encoders and multi-token prediction heads, which lose too much precision when quantized."""


def parse_type(text: str) -> str:
    """Return the canonical name of a type, in any case or in short form. Raises BadRequest for unsupported types."""
    name = _SHORT.get(text.upper(), text.upper())
    if name in NEED_IMPORTANCE:
        raise BadRequest(f"{name} requires an importance matrix, which is not supported; use the next larger type")
    if name not in SUPPORTED:
        raise BadRequest(f"unsupported quantization type {text} - supported types are {', '.join(SUPPORTED)}")
    return name


def file_type_number(name: str) -> int:
    """Return llama.cpp's number of a type returned by ``parse_type``."""
    return _NUMBERS[name]


def declared_type(gguf: GGUF) -> str:
    """Return the type that a file declares, as named in configs. F32 is number 0, which Ollama treats as unknown."""
    declared = gguf.metadata.get("general.file_type")
    return FILE_TYPES.get(declared, "unknown") if type(declared) is int and declared else "unknown"


def type_of(gguf: GGUF) -> str:
    """Return the type of a file. If it is not declared, a file whose tensors are all F32 has the type F32."""
    declared = declared_type(gguf)
    return "F32" if declared == "unknown" and all(tensor.type == "F32" for tensor in gguf.tensors) else declared


def type_overrides(name: str, architecture: str) -> Mapping[str, int]:
    """Return the tensors (regular expressions of names) that get another type than the requested one, and that type."""
    overrides = _ARCHITECTURE_OVERRIDES.get(architecture, {}) if "_K" in name else {}
    return {**_ENCODERS, **overrides} if name not in FLOATS else {}
