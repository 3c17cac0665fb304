"""Phi-3, Phi-3.5 and Phi-4, which share an architecture."""

from __future__ import annotations

import math
from collections.abc import Iterator

import gguf

from ollama_nb.errors import BadRequest
from ollama_nb.store.convert.base import CheckpointConverter, vector_tensor
from ollama_nb.store.convert.checkpoint import Tensor


class Phi3Converter(CheckpointConverter):
    """RoPE factors of long contexts become tensors."""

    arch = gguf.MODEL_ARCH.PHI3

    @property
    def kv_heads(self) -> int:
        return self.number("num_key_value_heads", "num_attention_heads")

    @property
    def rotary_dimensions(self) -> int:
        """The number of rotary dimensions of a head."""
        share = self.rope["partial_rotary_factor"]
        return int((1.0 if share is None else share) * self.number("hidden_size")) // self.heads

    @property
    def original_context_length(self) -> int:
        """The context length of the original training, in tokens, before RoPE scaling."""
        original_context_length = self.rope["original_max_position_embeddings"]
        return (
            original_context_length
            if type(original_context_length) is int and original_context_length > 0
            else self.number("max_position_embeddings")
        )

    def describe(self, out: gguf.GGUFWriter) -> None:
        super().describe(out)
        out.add_head_count_kv(self.kv_heads)
        out.add_rope_dimension_count(self.rotary_dimensions)
        out.add_rope_scaling_orig_ctx_len(self.original_context_length)
        # Zero means no sliding window, which distinguishes Phi-4.
        out.add_sliding_window(self.find("sliding_window") or 0)
        if self.rope.get("long_factor"):
            out.add_rope_scaling_attn_factors(self._attention_factor())

    def extra_tensors(self) -> Iterator[Tensor]:
        long, short = self.rope.get("long_factor"), self.rope.get("short_factor")
        if not long:
            return
        if not isinstance(short, list) or not len(long) == len(short) == self.rotary_dimensions // 2:
            raise BadRequest(f"config.json must have {self.rotary_dimensions // 2} long and short RoPE scaling factors")
        yield vector_tensor("rope_factors_long.weight", long)
        yield vector_tensor("rope_factors_short.weight", short)

    def _attention_factor(self) -> float:
        stretch = self.number("max_position_embeddings") / self.original_context_length
        if stretch <= 1:
            return 1.0
        if self.rope["rope_type"] == "yarn":
            return 0.1 * math.log(stretch) + 1.0
        return math.sqrt(1 + math.log(stretch) / math.log(self.original_context_length))
