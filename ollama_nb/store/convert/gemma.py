"""Gemma 1, 2 and 3, and EmbeddingGemma."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import gguf

from ollama_nb.store.convert.base import CheckpointConverter, dense_layers, describe_pooling
from ollama_nb.store.convert.checkpoint import Checkpoint, Tensor


class GemmaConverter(CheckpointConverter):
    """The output head is tied to the embeddings, so ``lm_head`` is skipped. Norm weights are stored minus one."""

    arch = gguf.MODEL_ARCH.GEMMA
    prefixes: ClassVar = ("language_model.", "model.language_model.")

    @property
    def head_size(self) -> int:
        return self.number("head_dim")

    def strip_prefix(self, tensor: Tensor) -> Tensor:
        tensor = super().strip_prefix(tensor)
        bare = tensor.name.startswith(("layers.", "embed_tokens.", "norm."))
        return tensor.renamed(f"model.{tensor.name}") if bare else tensor

    def map_tensor(self, tensor: Tensor) -> Iterator[Tensor]:
        if tensor.name == "lm_head.weight":
            return
        if tensor.name.endswith("norm.weight"):
            tensor = tensor.transformed(lambda weights: weights.astype("f4") + 1)
        yield from super().map_tensor(tensor)


class Gemma2Converter(GemmaConverter):
    arch = gguf.MODEL_ARCH.GEMMA2

    def describe(self, out: gguf.GGUFWriter) -> None:
        super().describe(out)
        out.add_attn_logit_softcapping(self.find("attn_logit_softcapping"))
        out.add_final_logit_softcapping(self.find("final_logit_softcapping"))
        out.add_sliding_window(self.number("sliding_window"))


class Gemma3Converter(GemmaConverter):
    """Config files of this architecture omit default values."""

    arch = gguf.MODEL_ARCH.GEMMA3
    defaults: ClassVar = {
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    }

    def __init__(self, config: dict[str, object]) -> None:
        super().__init__(config)
        self.config = {**self.defaults, **{key: value for key, value in self.config.items() if value is not None}}

    def describe(self, out: gguf.GGUFWriter) -> None:
        super().describe(out)
        if self.rope["rope_theta"] is None:
            out.add_rope_freq_base(1_000_000.0)
        if (local := self._local_theta()) is not None:
            out.add_rope_freq_base_swa(local)
        if (cap := self.find("final_logit_softcapping")) is not None:
            out.add_final_logit_softcapping(cap)
        if self.find("sliding_window_pattern", "_sliding_window_pattern") != 1:
            out.add_sliding_window(self.number("sliding_window"))

    def _local_theta(self) -> float | None:
        """The RoPE base of the sliding-window layers."""
        by_layer = self.find("rope_parameters")
        if isinstance(by_layer, dict) and isinstance(by_layer.get("sliding_attention"), dict):
            found: float | None = by_layer["sliding_attention"].get("rope_theta")
            return found
        local: float | None = self.find("rope_local_base_freq")
        return local


class EmbeddingGemmaConverter(Gemma3Converter):
    """Two dense layers after the pooling are in separate folders."""

    arch = gguf.MODEL_ARCH.GEMMA_EMBEDDING

    def __init__(self, config: dict[str, object]) -> None:
        super().__init__(config)
        self._dense: list[Tensor] = []

    def describe_tokenizer(self, out: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        describe_pooling(out, checkpoint)
        for name, tensor in dense_layers(checkpoint):
            out.add_dense_features_dims(name, tensor.shape[1], tensor.shape[0])
            self._dense.append(tensor.renamed(f"{name}.weight"))

    def extra_tensors(self) -> Iterator[Tensor]:
        yield from self._dense
