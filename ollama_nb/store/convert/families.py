"""The converters by architecture name in config.json. A new architecture is added here."""

from __future__ import annotations

from collections.abc import Mapping

import gguf

from ollama_nb.errors import BadRequest
from ollama_nb.store.convert.base import CheckpointConverter
from ollama_nb.store.convert.bert import BertConverter, DistilBertConverter, RobertaConverter
from ollama_nb.store.convert.gemma import EmbeddingGemmaConverter, Gemma2Converter, Gemma3Converter, GemmaConverter
from ollama_nb.store.convert.llama import LlamaConverter
from ollama_nb.store.convert.phi3 import Phi3Converter
from ollama_nb.store.convert.qwen import Qwen2Converter, Qwen2MoeConverter, Qwen3Converter, Qwen3MoeConverter

CONVERTERS: Mapping[str, type[CheckpointConverter]] = {
    "LlamaForCausalLM": LlamaConverter,
    "MistralForCausalLM": LlamaConverter,
    "Mistral3ForConditionalGeneration": LlamaConverter,
    "MixtralForCausalLM": LlamaConverter,
    "Qwen2ForCausalLM": Qwen2Converter,
    "Qwen2Model": Qwen2Converter,
    "Qwen2MoeForCausalLM": Qwen2MoeConverter,
    "Qwen3ForCausalLM": Qwen3Converter,
    "Qwen3Model": Qwen3Converter,
    "Qwen3MoeForCausalLM": Qwen3MoeConverter,
    "GemmaForCausalLM": GemmaConverter,
    "Gemma2ForCausalLM": Gemma2Converter,
    "Gemma3ForCausalLM": Gemma3Converter,
    "Gemma3ForConditionalGeneration": Gemma3Converter,
    "Gemma3TextModel": EmbeddingGemmaConverter,
    "Phi3ForCausalLM": Phi3Converter,
    "BertModel": BertConverter,
    "BertForMaskedLM": BertConverter,
    "DistilBertModel": DistilBertConverter,
    "RobertaModel": RobertaConverter,
    "XLMRobertaModel": RobertaConverter,
}

_BY_GGUF_ARCHITECTURE: Mapping[str, type[CheckpointConverter]] = {
    gguf.MODEL_ARCH_NAMES[converter.arch]: converter
    for converter in (
        LlamaConverter,
        Qwen2Converter,
        Qwen2MoeConverter,
        Qwen3Converter,
        Qwen3MoeConverter,
        GemmaConverter,
        Gemma2Converter,
        Gemma3Converter,
        Phi3Converter,
    )
}
"""Converters of models that can have LoRA adapters."""


def converter_of(architecture: str) -> type[CheckpointConverter]:
    """Return the converter of an architecture. Raises BadRequest if it is not supported."""
    if architecture not in CONVERTERS:
        known = ", ".join(CONVERTERS)
        raise BadRequest(
            f'unsupported architecture "{architecture}"; supported are {known}; use a GGUF file for others'
        )
    return CONVERTERS[architecture]


def converter_of_gguf(architecture: str) -> type[CheckpointConverter]:
    """Return the converter for adapters of a GGUF architecture. Raises BadRequest if it is not supported."""
    if architecture not in _BY_GGUF_ARCHITECTURE:
        raise BadRequest(f'unsupported architecture: adapters for "{architecture}" are not supported')
    return _BY_GGUF_ARCHITECTURE[architecture]
