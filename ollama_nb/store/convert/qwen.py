"""Qwen 2, 2.5 and 3, dense and mixture-of-experts, and their embedding models."""

from __future__ import annotations

import re
from collections.abc import Iterator

import gguf

from ollama_nb.store.convert.base import CheckpointConverter, describe_pooling
from ollama_nb.store.convert.checkpoint import Checkpoint, Tensor

_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.((?:gate|up|down)_proj\.weight)")


class Qwen2Converter(CheckpointConverter):
    arch = gguf.MODEL_ARCH.QWEN2

    def strip_prefix(self, tensor: Tensor) -> Tensor:
        """Add the prefix ``model.``, which models without an output head (embedding models) omit."""
        bare = tensor.name.startswith(("layers.", "embed_tokens.", "norm."))
        return tensor.renamed(f"model.{tensor.name}") if bare else super().strip_prefix(tensor)

    def describe_tokenizer(self, out: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        describe_pooling(out, checkpoint)


class Qwen3Converter(Qwen2Converter):
    arch = gguf.MODEL_ARCH.QWEN3


class Qwen2MoeConverter(Qwen2Converter):
    """The weights of the experts are stacked."""

    arch = gguf.MODEL_ARCH.QWEN2MOE

    def describe(self, out: gguf.GGUFWriter) -> None:
        super().describe(out)
        out.add_expert_feed_forward_length(self.number("moe_intermediate_size"))
        if (shared := self.find("shared_expert_intermediate_size")) is not None:
            out.add_expert_shared_feed_forward_length(shared)

    def map_tensor(self, tensor: Tensor) -> Iterator[Tensor]:
        if expert := _EXPERT.fullmatch(tensor.name):
            stem, index, matrix = expert.groups()
            yield from self.experts.add(self.gguf_name(f"{stem}.{matrix}"), int(index), tensor)
            return
        yield from super().map_tensor(tensor)


class Qwen3MoeConverter(Qwen2MoeConverter):
    arch = gguf.MODEL_ARCH.QWEN3MOE
