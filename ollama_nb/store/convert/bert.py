"""Embedding encoders: BERT, RoBERTa, XLM-RoBERTa, DistilBERT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import gguf

from ollama_nb.store.convert.base import CheckpointConverter, describe_pooling
from ollama_nb.store.convert.checkpoint import Checkpoint, Tensor

_HEADS = (
    "pooler.",
    "cls.predictions.",
    "cls.seq_relationship.",
    "lm_head.",
    "vocab_",
)  # prefixes of tensors that embedding models do not use


class BertConverter(CheckpointConverter):
    """BERT: bidirectional attention, without the heads of the pre-training tasks."""

    arch = gguf.MODEL_ARCH.BERT
    prefixes: ClassVar = ("bert.",)

    def describe(self, out: gguf.GGUFWriter) -> None:
        super().describe(out)
        out.add_causal_attention(False)

    def describe_tokenizer(self, out: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        out.add_token_type_count(self.find("type_vocab_size") or 1)
        describe_pooling(out, checkpoint)

    def map_tensor(self, tensor: Tensor) -> Iterator[Tensor]:
        if not tensor.name.startswith(_HEADS):
            # Old checkpoints use gamma and beta instead of weight and bias.
            name = tensor.name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
                "LayerNorm.beta", "LayerNorm.bias"
            )
            yield from super().map_tensor(tensor.renamed(name))


class RobertaConverter(BertConverter):
    """Positions start after the id of the padding token; the rows up to it are unused."""

    prefixes: ClassVar = ("roberta.",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        padding = self.find("pad_token_id")
        self._skipped = padding + 1 if type(padding) is int and padding >= 0 else 0
        self.config["max_position_embeddings"] = self.number("max_position_embeddings") - self._skipped

    def map_tensor(self, tensor: Tensor) -> Iterator[Tensor]:
        if tensor.name == "embeddings.position_embeddings.weight":
            rows = (tensor.shape[0] - self._skipped, *tensor.shape[1:])
            tensor = tensor.transformed(lambda positions: positions[self._skipped :], rows)
        yield from super().map_tensor(tensor)


class DistilBertConverter(BertConverter):
    """DistilBERT, whose hyperparameters have other names."""

    prefixes: ClassVar = ("distilbert.",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        named = {"n_heads": "num_attention_heads", "dim": "hidden_size", "hidden_dim": "intermediate_size"}
        renamed = {named[key]: value for key, value in config.items() if key in named}
        super().__init__({"layer_norm_eps": 1e-12, **config, **renamed})
