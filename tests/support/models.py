"""GGUF models made on the spot: random weights in several architectures, and stories260K with a longer context."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from benchmarks.models import Shape, make
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType

RANK = 4
_CHANGED = "attn_q.weight", "attn_v.weight", "ffn_up.weight"


def random_lora(base: Path, path: Path, seed: int, *, strength: float = 0.15, architecture: str = "llama") -> Path:
    """An adapter that changes queries, values and feed-forward of every layer, enough to change the output."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for tensor in GGUFReader(base).tensors:
        if tensor.name.endswith(_CHANGED):
            n_in, n_out = (int(size) for size in tensor.shape)
            for half, shape in (("a", (RANK, n_in)), ("b", (n_out, RANK))):
                values = rng.normal(0.0, strength, shape).astype(np.float32)
                writer.add_tensor(f"{tensor.name}.lora_{half}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


HEAVY_VOCAB, HEAVY_CONTEXT = 2048, 8192


def heavy(path: Path) -> Path:
    """Twenty-five million parameters, 4 bits, a context of 8,192: about 5 s of prefill for a full one."""
    make(Shape("llama", 8, 512, 1408, 8, 4, HEAVY_CONTEXT, HEAVY_VOCAB, GGMLQuantizationType.Q4_0,
               LlamaFileType.MOSTLY_Q4_0), path)  # fmt: skip
    return path


MAMBA_EMBD, MAMBA_INNER, MAMBA_STATE, MAMBA_CONV, MAMBA_RANK, MAMBA_LAYER = 64, 128, 16, 4, 8, 2
LONG_CONTEXT = 4096


def long_stories(source: Path, target: Path) -> Path:
    """stories260K with a context of 4,096 tokens. Beyond 512 its text is nonsense but deterministic."""
    data = bytearray(source.read_bytes())
    at = data.index(key := b"llama.context_length") + len(key) + 4
    assert int.from_bytes(data[at : at + 4], "little") == 512
    data[at : at + 4] = LONG_CONTEXT.to_bytes(4, "little")
    target.write_bytes(data)
    return target


def tiny_mamba(source: Path, target: Path) -> Path:
    """Random weights in the shape of Mamba, with the vocabulary of stories260K."""
    dice = np.random.default_rng(7)
    writer = gguf.GGUFWriter(target, "mamba")
    writer.add_context_length(LONG_CONTEXT)
    writer.add_embedding_length(MAMBA_EMBD)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(MAMBA_LAYER)
    writer.add_ssm_conv_kernel(MAMBA_CONV)
    writer.add_ssm_inner_size(MAMBA_INNER)
    writer.add_ssm_state_size(MAMBA_STATE)
    writer.add_ssm_time_step_rank(MAMBA_RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    reader = gguf.GGUFReader(source)
    _copy_vocabulary(reader, writer)

    def add(name: str, *shape: int, scale: float = 0.3) -> None:
        writer.add_tensor(name, dice.normal(0, scale, shape).astype(np.float32))

    n_vocab = len(reader.fields["tokenizer.ggml.tokens"].contents())
    add("token_embd.weight", n_vocab, MAMBA_EMBD, scale=1.0)
    writer.add_tensor("output_norm.weight", np.ones(MAMBA_EMBD, np.float32))
    for layer in range(MAMBA_LAYER):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", np.ones(MAMBA_EMBD, np.float32))
        add(block + "ssm_in.weight", 2 * MAMBA_INNER, MAMBA_EMBD)
        add(block + "ssm_conv1d.weight", MAMBA_INNER, MAMBA_CONV)
        add(block + "ssm_conv1d.bias", MAMBA_INNER)
        add(block + "ssm_x.weight", MAMBA_RANK + 2 * MAMBA_STATE, MAMBA_INNER)
        add(block + "ssm_dt.weight", MAMBA_INNER, MAMBA_RANK)
        add(block + "ssm_dt.bias", MAMBA_INNER)
        writer.add_tensor(block + "ssm_a", -np.exp(dice.normal(0, 1, (MAMBA_INNER, MAMBA_STATE))).astype(np.float32))
        add(block + "ssm_d", MAMBA_INNER)
        add(block + "ssm_out.weight", MAMBA_EMBD, MAMBA_INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def vocabulary(source: Path, target: Path, name: str = "", **changes: Any) -> Path:
    """A file with the vocabulary of another model and no weights. ``changes``: values by key, ``tokenizer.ggml.<key>``.

    A function as value is given the value of the source. llama.cpp knows some models by their ``name``.
    """
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(name)
    _copy_vocabulary(gguf.GGUFReader(source), writer, changes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _copy_vocabulary(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, changes: Mapping[str, Any] = {}) -> None:
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[1] if len(field.types) > 1 else None
            value, change = field.contents(), changes.get(name.removeprefix("tokenizer.ggml."))
            if change is not None:
                value = change(value) if callable(change) else change
            writer.add_key_value(name, value, field.types[0], sub_type=inner)


Array = npt.NDArray[np.float64]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "sky", "is", "blue", "grass", "green", "why", "rain", "falls", "cat", "sat", "on", "mat", "天", "地")
RANKER_EMBD, RANKER_HEAD, RANKER_FF, RANKER_LAYER, RANKER_CONTEXT = 32, 4, 64, 2, 64
_CLS, _SEP = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")


class TinyRanker:
    """A cross-encoder in two layers: ``write`` makes the model file, ``score`` returns the expected score (0 to 1)."""

    def __init__(self, seed: int = 6) -> None:
        dice = np.random.default_rng(seed)

        def random(*shape: int, scale: float = 0.3) -> Any:
            return dice.normal(scale=scale, size=shape).astype(np.float32)

        self.tensors: dict[str, Any] = {
            "token_embd.weight": random(len(SPECIAL) + len(WORDS), RANKER_EMBD, scale=1.0),
            "position_embd.weight": random(RANKER_CONTEXT, RANKER_EMBD),
            "token_types.weight": random(2, RANKER_EMBD),
            **_norm("token_embd_norm", random),
            "cls.weight": random(RANKER_EMBD, RANKER_EMBD),
            "cls.bias": random(RANKER_EMBD),
            "cls.output.weight": random(1, RANKER_EMBD, scale=1.0),
            "cls.output.bias": random(1),
        }
        for layer in range(RANKER_LAYER):
            at = f"blk.{layer}."
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                self.tensors |= {
                    f"{at}{name}.weight": random(RANKER_EMBD, RANKER_EMBD),
                    f"{at}{name}.bias": random(RANKER_EMBD),
                }
            self.tensors |= {
                f"{at}ffn_up.weight": random(RANKER_FF, RANKER_EMBD),
                f"{at}ffn_up.bias": random(RANKER_FF),
            }
            self.tensors |= {
                f"{at}ffn_down.weight": random(RANKER_EMBD, RANKER_FF),
                f"{at}ffn_down.bias": random(RANKER_EMBD),
            }
            self.tensors |= _norm(f"{at}attn_output_norm", random) | _norm(f"{at}layer_output_norm", random)

    def write(self, target: Path, *, template: str = "") -> Path:
        """``template`` is the format of a pair of query and document."""
        writer = gguf.GGUFWriter(target, "bert")
        writer.add_name("tiny ranker")
        writer.add_context_length(RANKER_CONTEXT)
        writer.add_embedding_length(RANKER_EMBD)
        writer.add_feed_forward_length(RANKER_FF)
        writer.add_block_count(RANKER_LAYER)
        writer.add_head_count(RANKER_HEAD)
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
        """Compute the score of ``[CLS] query [SEP] document [SEP]``; every token has type 0, as in llama.cpp."""
        words = [*SPECIAL, *WORDS]
        first, second = ([words.index(word) for word in text.split()] for text in (query, document))
        ids = [_CLS, *first, _SEP, *second, _SEP]
        weights = self.tensors
        x = weights["token_embd.weight"][ids] + weights["position_embd.weight"][: len(ids)]
        x = self._normed(x.astype(np.float64) + weights["token_types.weight"][0], "token_embd_norm")
        for layer in range(RANKER_LAYER):
            x = self._block(x, f"blk.{layer}.")
        return _sigmoid(float(self._linear(np.tanh(self._linear(x[0], "cls")), "cls.output")[0]))

    def _block(self, x: Array, at: str) -> Array:
        size = RANKER_EMBD // RANKER_HEAD
        q, k, v = (self._linear(x, at + name).reshape(-1, RANKER_HEAD, size) for name in ("attn_q", "attn_k", "attn_v"))
        attention = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(size)
        attention = np.exp(attention - attention.max(axis=-1, keepdims=True))
        attention /= attention.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", attention, v).reshape(-1, RANKER_EMBD)
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
    return {f"{name}.weight": 1 + random(RANKER_EMBD), f"{name}.bias": random(RANKER_EMBD)}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
