"""The architectures that can be converted, by the names that checkpoints give them."""

from __future__ import annotations

from collections.abc import Mapping

import gguf

from ollama_nb.errors import BadRequest
from ollama_nb.store.convert.base import Family
from ollama_nb.store.convert.bert import Bert, DistilBert, Roberta
from ollama_nb.store.convert.gemma import EmbeddingGemma, Gemma, Gemma2, Gemma3
from ollama_nb.store.convert.llama import Llama
from ollama_nb.store.convert.phi3 import Phi3
from ollama_nb.store.convert.qwen import Qwen2, Qwen2Moe, Qwen3, Qwen3Moe

FAMILIES: Mapping[str, type[Family]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "Mistral3ForConditionalGeneration": Llama,
    "MixtralForCausalLM": Llama,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen2Model": Qwen2,
    "Qwen2MoeForCausalLM": Qwen2Moe,
    "Qwen3ForCausalLM": Qwen3,
    "Qwen3Model": Qwen3,
    "Qwen3MoeForCausalLM": Qwen3Moe,
    "GemmaForCausalLM": Gemma,
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "Gemma3ForConditionalGeneration": Gemma3,
    "Gemma3TextModel": EmbeddingGemma,
    "Phi3ForCausalLM": Phi3,
    "BertModel": Bert,
    "BertForMaskedLM": Bert,
    "DistilBertModel": DistilBert,
    "RobertaModel": Roberta,
    "XLMRobertaModel": Roberta,
}

_BY_ARCH = {gguf.MODEL_ARCH_NAMES[family.arch]: family for family in (
    Llama, Qwen2, Qwen2Moe, Qwen3, Qwen3Moe, Gemma, Gemma2, Gemma3, Phi3)}  # fmt: skip


def family_of(architecture: str) -> type[Family]:
    """Raises BadRequest for an architecture that is not among them."""
    if architecture not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BadRequest(f'unsupported architecture "{architecture}"; supported are {known}; others as GGUF files')
    return FAMILIES[architecture]


def family_of_gguf(architecture: str) -> type[Family]:
    """The family of a converted model, for adapters to it. Raises BadRequest."""
    if architecture not in _BY_ARCH:
        raise BadRequest(f'unsupported architecture: adapters for "{architecture}" cannot be converted')
    return _BY_ARCH[architecture]
