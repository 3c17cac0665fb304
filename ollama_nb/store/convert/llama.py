"""Llama, Mistral and Mixtral."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import gguf

from ollama_nb.errors import BadRequest
from ollama_nb.store.convert.base import CheckpointConverter, interleave_rows, vector_tensor
from ollama_nb.store.convert.checkpoint import Tensor

_EXPERT = re.compile(r"(?:model\.)?layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight")


class LlamaConverter(CheckpointConverter):
    """Q and K are permuted; the weights of Mixtral's experts are stacked."""

    arch = gguf.MODEL_ARCH.LLAMA
    prefixes: ClassVar = ("language_model.", "model.language_model.", "text_model.")

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if (kind := self.find("model_type")) not in (None, "llama", "mistral", "mixtral"):
            raise BadRequest(f"unsupported architecture: text model of type {kind!r}")

    def describe(self, out: gguf.GGUFWriter) -> None:
        super().describe(out)
        out.add_vocab_size(self.number("vocab_size"))
        out.add_rope_dimension_count(self.head_size)

    def map_tensor(self, tensor: Tensor) -> Iterator[Tensor]:
        if expert := _EXPERT.fullmatch(tensor.name):
            layer, index, matrix = expert.groups()
            name = self.gguf_name(f"layers.{layer}.feed_forward.experts.{matrix}.weight")
            yield from self.experts.add(name, int(index), tensor)
            return
        if tensor.name.endswith(("q_proj.weight", "q_proj.bias")):
            tensor = tensor.transformed(lambda rows: interleave_rows(rows, self.heads))
        elif tensor.name.endswith(("k_proj.weight", "k_proj.bias")):
            tensor = tensor.transformed(lambda rows: interleave_rows(rows, self.kv_heads))
        yield from super().map_tensor(tensor)

    def extra_tensors(self) -> Iterator[Tensor]:
        if self.rope["rope_type"] == "llama3":
            yield vector_tensor("rope_freqs.weight", self._frequency_divisors())

    def _frequency_divisors(self) -> list[float]:
        """The RoPE frequency divisors of Llama 3.1 by pair, from 1 (high frequency) to ``factor`` (low frequency)."""
        rope, size = self.rope, self.head_size
        base = rope["rope_theta"] or 10000.0
        factor, low, high = (rope.get(key, default) for key, default in (
            ("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0)))  # fmt: skip
        trained = rope["original_max_position_embeddings"] or 8192
        divisors = []
        for pair in range(0, size, 2):
            length = 2 * math.pi * base ** (pair / size)
            if length < trained / high:
                divisors.append(1.0)
            elif length > trained / low:
                divisors.append(float(factor))
            else:
                smooth = (trained / length - low) / (high - low)
                divisors.append(1 / ((1 - smooth) / factor + smooth))
        return divisors
