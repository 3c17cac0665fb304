"""A tiny cross-encoder with random weights, as a GGUF and as NumPy: BERT in two layers with a classifier on top."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "sky", "is", "blue", "grass", "green", "why", "rain", "falls", "cat", "sat", "on", "mat", "天", "地")
N_EMBD, N_HEAD, N_FF, N_LAYER, CONTEXT = 32, 4, 64, 2, 64
_CLS, _SEP = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")


class TinyRanker:
    """``write`` makes the model file; ``score`` says what it must answer, from 0 to 1."""

    def __init__(self, seed: int = 6) -> None:
        dice = np.random.default_rng(seed)

        def random(*shape: int, scale: float = 0.3) -> Any:
            return dice.normal(scale=scale, size=shape).astype(np.float32)

        self.tensors: dict[str, Any] = {
            "token_embd.weight": random(len(SPECIAL) + len(WORDS), N_EMBD, scale=1.0),
            "position_embd.weight": random(CONTEXT, N_EMBD),
            "token_types.weight": random(2, N_EMBD),
            **_norm("token_embd_norm", random),
            "cls.weight": random(N_EMBD, N_EMBD),
            "cls.bias": random(N_EMBD),
            "cls.output.weight": random(1, N_EMBD, scale=1.0),
            "cls.output.bias": random(1),
        }
        for layer in range(N_LAYER):
            at = f"blk.{layer}."
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                self.tensors |= {f"{at}{name}.weight": random(N_EMBD, N_EMBD), f"{at}{name}.bias": random(N_EMBD)}
            self.tensors |= {f"{at}ffn_up.weight": random(N_FF, N_EMBD), f"{at}ffn_up.bias": random(N_FF)}
            self.tensors |= {f"{at}ffn_down.weight": random(N_EMBD, N_FF), f"{at}ffn_down.bias": random(N_EMBD)}
            self.tensors |= _norm(f"{at}attn_output_norm", random) | _norm(f"{at}layer_output_norm", random)

    def write(self, target: Path, *, template: str = "") -> Path:
        """``template``: how the model wants its pairs written."""
        writer = gguf.GGUFWriter(target, "bert")
        writer.add_name("tiny ranker")
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(N_EMBD)
        writer.add_feed_forward_length(N_FF)
        writer.add_block_count(N_LAYER)
        writer.add_head_count(N_HEAD)
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("bert-bge")
        writer.add_token_type_count(2)
        writer.add_token_list([*SPECIAL, *(f"\u2581{word}" for word in WORDS)])
        normal = [gguf.TokenType.NORMAL] * len(WORDS)
        writer.add_token_types([int(kind) for kind in [gguf.TokenType.CONTROL] * len(SPECIAL) + normal])
        writer.add_unk_token_id(SPECIAL.index("[UNK]"))
        writer.add_pad_token_id(SPECIAL.index("[PAD]"))
        writer.add_mask_token_id(SPECIAL.index("[MASK]"))
        writer.add_bos_token_id(_CLS)
        writer.add_eos_token_id(_SEP)
        writer.add_sep_token_id(_SEP)
        if template:
            writer.add_string("tokenizer.chat_template.rerank", template)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return target

    def score(self, query: str, document: str) -> float:
        """``[CLS] query [SEP] document [SEP]`` through the model; every token has type 0, as in llama.cpp."""
        words = [*SPECIAL, *WORDS]
        first, second = ([words.index(word) for word in text.split()] for text in (query, document))
        ids = [_CLS, *first, _SEP, *second, _SEP]
        weights = self.tensors
        x = weights["token_embd.weight"][ids] + weights["position_embd.weight"][: len(ids)]
        x = self._normed(x.astype(np.float64) + weights["token_types.weight"][0], "token_embd_norm")
        for layer in range(N_LAYER):
            x = self._block(x, f"blk.{layer}.")
        return _sigmoid(float(self._linear(np.tanh(self._linear(x[0], "cls")), "cls.output")[0]))

    def _block(self, x: Array, at: str) -> Array:
        size = N_EMBD // N_HEAD
        q, k, v = (self._linear(x, at + name).reshape(-1, N_HEAD, size) for name in ("attn_q", "attn_k", "attn_v"))
        attention = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(size)
        attention = np.exp(attention - attention.max(axis=-1, keepdims=True))
        attention /= attention.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", attention, v).reshape(-1, N_EMBD)
        x = self._normed(x + self._linear(mixed, at + "attn_output"), at + "attn_output_norm")
        inner = self._linear(x, at + "ffn_up")
        inner *= 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        return self._normed(x + self._linear(inner, at + "ffn_down"), at + "layer_output_norm")

    def _linear(self, x: Array, name: str) -> Array:
        result: Array = x @ self.tensors[f"{name}.weight"].astype(np.float64).T + self.tensors[f"{name}.bias"]
        return result

    def _normed(self, x: Array, name: str) -> Array:
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
        result: Array = x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]
        return result


def _norm(name: str, random: Any) -> dict[str, Any]:
    return {f"{name}.weight": 1 + random(N_EMBD), f"{name}.bias": random(N_EMBD)}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
