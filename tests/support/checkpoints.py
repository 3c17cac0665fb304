"""Tiny checkpoints of every convertible family: config, tokenizer files, random weights from a fixed seed.

The weights come from NumPy alone, so the golden files contain only the results of the reference implementation.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).parent.parent / "golden" / "convert"
ROWS = 640
WIDTH, LAYERS, HEADS, KV_HEADS, INNER = 32, 2, 4, 2, 48
EXPERTS = 4

Shapes = Iterator[tuple[str, tuple[int, ...]]]
Array = npt.NDArray[Any]

_SHARED: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_BERT: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}


def _decoder(
    *, head: int = WIDTH // HEADS, biases: bool = False, head_norms: bool = False, four_norms: bool = False,
    output: bool = True, fused: bool = False, experts: str = "", shared: bool = False, layers: int = LAYERS,
) -> Shapes:  # fmt: skip
    yield "model.embed_tokens.weight", (ROWS, WIDTH)
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        sizes = {"q": HEADS * head, "k": KV_HEADS * head, "v": KV_HEADS * head}
        if fused:
            yield f"{stem}.self_attn.qkv_proj.weight", (sum(sizes.values()), WIDTH)
            yield f"{stem}.mlp.gate_up_proj.weight", (2 * INNER, WIDTH)
            yield f"{stem}.mlp.down_proj.weight", (WIDTH, INNER)
        else:
            for which, size in sizes.items():
                yield f"{stem}.self_attn.{which}_proj.weight", (size, WIDTH)
                if biases:
                    yield f"{stem}.self_attn.{which}_proj.bias", (size,)
            yield from _feed_forward(stem, experts, shared)
        yield f"{stem}.self_attn.o_proj.weight", (WIDTH, HEADS * head)
        yield f"{stem}.input_layernorm.weight", (WIDTH,)
        yield f"{stem}.post_attention_layernorm.weight", (WIDTH,)
        if head_norms:
            yield f"{stem}.self_attn.q_norm.weight", (head,)
            yield f"{stem}.self_attn.k_norm.weight", (head,)
        if four_norms:
            yield f"{stem}.pre_feedforward_layernorm.weight", (WIDTH,)
            yield f"{stem}.post_feedforward_layernorm.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)
    if output:
        yield "lm_head.weight", (ROWS, WIDTH)


def _feed_forward(stem: str, experts: str, shared: bool) -> Shapes:
    names = ("gate_proj", "up_proj", "down_proj")
    if experts == "mixtral":
        yield f"{stem}.block_sparse_moe.gate.weight", (EXPERTS, WIDTH)
        for expert in range(EXPERTS):
            for name in ("w1", "w3", "w2"):
                shape = (WIDTH, INNER) if name == "w2" else (INNER, WIDTH)
                yield f"{stem}.block_sparse_moe.experts.{expert}.{name}.weight", shape
        return
    places = [f"{stem}.mlp"]
    if experts:
        yield f"{stem}.mlp.gate.weight", (EXPERTS, WIDTH)
        places = [f"{stem}.mlp.experts.{expert}" for expert in range(EXPERTS)]
    if shared:
        yield f"{stem}.mlp.shared_expert_gate.weight", (1, WIDTH)
        places.append(f"{stem}.mlp.shared_expert")
    for place in places:
        for name in names:
            yield f"{place}.{name}.weight", (WIDTH, INNER) if name == "down_proj" else (INNER, WIDTH)


def _encoder(prefix: str = "", positions: int = 64, types: int = 2) -> Shapes:
    yield f"{prefix}embeddings.word_embeddings.weight", (ROWS, WIDTH)
    yield f"{prefix}embeddings.position_embeddings.weight", (positions, WIDTH)
    yield f"{prefix}embeddings.token_type_embeddings.weight", (types, WIDTH)
    matrices = {
        "attention.self.query": (WIDTH, WIDTH),
        "attention.self.key": (WIDTH, WIDTH),
        "attention.self.value": (WIDTH, WIDTH),
        "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (INNER, WIDTH),
        "output.dense": (WIDTH, INNER),
    }
    norms = ["attention.output.LayerNorm", "output.LayerNorm"]
    yield from _weight_and_bias(f"{prefix}embeddings.LayerNorm", (WIDTH,))
    for layer in range(LAYERS):
        stem = f"{prefix}encoder.layer.{layer}"
        for name, shape in matrices.items():
            yield from _weight_and_bias(f"{stem}.{name}", shape)
        for name in norms:
            yield from _weight_and_bias(f"{stem}.{name}", (WIDTH,))
    yield from _weight_and_bias(f"{prefix}pooler.dense", (WIDTH, WIDTH))


def _distil() -> Shapes:
    yield "embeddings.word_embeddings.weight", (ROWS, WIDTH)
    yield "embeddings.position_embeddings.weight", (64, WIDTH)
    yield from _weight_and_bias("embeddings.LayerNorm", (WIDTH,))
    for layer in range(LAYERS):
        stem = f"transformer.layer.{layer}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            yield from _weight_and_bias(f"{stem}.attention.{name}", (WIDTH, WIDTH))
        yield from _weight_and_bias(f"{stem}.sa_layer_norm", (WIDTH,))
        yield from _weight_and_bias(f"{stem}.ffn.lin1", (INNER, WIDTH))
        yield from _weight_and_bias(f"{stem}.ffn.lin2", (WIDTH, INNER))
        yield from _weight_and_bias(f"{stem}.output_layer_norm", (WIDTH,))


def _weight_and_bias(name: str, shape: tuple[int, ...]) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _config(architecture: str, kind: str, base: Mapping[str, Any] = _SHARED, **own: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": kind, **base, **own}


FAMILIES: dict[str, tuple[dict[str, Any], Callable[[], Shapes], str]] = {
    "llama": (_config("LlamaForCausalLM", "llama", rope_scaling=_LLAMA3_ROPE), _decoder, "bpe-llama3"),
    "mistral": (
        _config("MistralForCausalLM", "mistral", head_dim=16, sliding_window=None),
        lambda: _decoder(head=16),
        "sentencepiece",
    ),
    "mixtral": (
        _config("MixtralForCausalLM", "mixtral", num_local_experts=EXPERTS, num_experts_per_tok=2, sliding_window=None),
        lambda: _decoder(experts="mixtral"),
        "spaced",
    ),
    "qwen2": (
        _config("Qwen2ForCausalLM", "qwen2", tie_word_embeddings=True),
        lambda: _decoder(biases=True, output=False),
        "bpe-qwen2",
    ),
    "qwen2moe": (
        _config(
            "Qwen2MoeForCausalLM", "qwen2_moe", num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=INNER,
            shared_expert_intermediate_size=INNER, norm_topk_prob=False, decoder_sparse_step=1,
        ),
        lambda: _decoder(biases=True, experts="qwen", shared=True),
        "bpe-qwen2",
    ),
    "qwen3": (
        _config("Qwen3ForCausalLM", "qwen3", head_dim=16, tie_word_embeddings=True),
        lambda: _decoder(head=16, head_norms=True, output=False),
        "bpe-qwen2",
    ),
    "qwen3moe": (
        _config(
            "Qwen3MoeForCausalLM", "qwen3_moe", head_dim=16, num_experts=EXPERTS, num_experts_per_tok=2,
            moe_intermediate_size=INNER, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
        ),
        lambda: _decoder(head=16, head_norms=True, experts="qwen"),
        "bpe-qwen2",
    ),
    "gemma2": (
        _config(
            "Gemma2ForCausalLM", "gemma2", head_dim=16, query_pre_attn_scalar=16, sliding_window=16,
            attn_logit_softcapping=50.0, final_logit_softcapping=30.0, hidden_activation="gelu_pytorch_tanh",
            tie_word_embeddings=True,
        ),
        lambda: _decoder(head=16, four_norms=True, output=False),
        "sentencepiece",
    ),
    "gemma3": (
        _config(
            "Gemma3ForCausalLM", "gemma3_text", head_dim=16, query_pre_attn_scalar=16, sliding_window=16,
            rope_theta=1_000_000.0, rope_local_base_freq=10000.0, hidden_activation="gelu_pytorch_tanh",
            tie_word_embeddings=True,
        ),
        lambda: _decoder(head=16, head_norms=True, four_norms=True, output=False),
        "spaced",
    ),
    "phi3": (
        _config("Phi3ForCausalLM", "phi3", sliding_window=None, original_max_position_embeddings=128, pad_token_id=0),
        lambda: _decoder(fused=True),
        "sentencepiece",
    ),
    "phi3-long": (
        _config(
            "Phi3ForCausalLM", "phi3", sliding_window=None, max_position_embeddings=512, pad_token_id=0,
            original_max_position_embeddings=256,
            rope_scaling={"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 4.0, 8]},
        ),
        lambda: _decoder(fused=True),
        "sentencepiece",
    ),
    "qwen2-yarn": (
        _config(
            "Qwen2ForCausalLM", "qwen2", tie_word_embeddings=True,
            rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        lambda: _decoder(biases=True, output=False),
        "bpe-qwen2",
    ),
    "gemma3-linear": (
        _config(
            "Gemma3ForCausalLM", "gemma3_text", head_dim=16, query_pre_attn_scalar=16, sliding_window=16,
            rope_theta=1_000_000.0, rope_local_base_freq=10000.0, hidden_activation="gelu_pytorch_tanh",
            tie_word_embeddings=True, num_hidden_layers=6, rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        lambda: _decoder(head=16, head_norms=True, four_norms=True, output=False, layers=6),
        "spaced",
    ),
    "embeddinggemma": (
        _config(
            "Gemma3TextModel", "gemma3_text", head_dim=16, query_pre_attn_scalar=16, sliding_window=512,
            rope_theta=1_000_000.0, rope_local_base_freq=10000.0, hidden_activation="gelu_pytorch_tanh",
            use_bidirectional_attention=True, num_hidden_layers=6,
        ),
        lambda: (
            (name.removeprefix("model."), shape)
            for name, shape in _decoder(head=16, head_norms=True, four_norms=True, output=False, layers=6)
        ),
        "spaced",
    ),
    "bert": (_config("BertModel", "bert", _BERT), _encoder, "wordpiece"),
    "roberta": (
        _config("RobertaModel", "roberta", _BERT, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1),
        lambda: _encoder("", 66, 1),
        "bpe-gpt2",
    ),
    "xlm-roberta": (
        _config("XLMRobertaModel", "xlm-roberta", _BERT, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1),
        lambda: _encoder("roberta.", 66, 1),
        "unigram",
    ),
    "distilbert": (
        {
            "architectures": ["DistilBertModel"], "model_type": "distilbert", "vocab_size": ROWS, "dim": WIDTH,
            "hidden_dim": INNER, "n_layers": LAYERS, "n_heads": HEADS, "max_position_embeddings": 64, "dropout": 0.0,
            "attention_dropout": 0.0, "activation": "gelu",
        },
        _distil,
        "wordpiece",
    ),
}  # fmt: skip
"""Family → config.json, names and shapes of its tensors, its tokenizer."""


def make_checkpoint(family: str, folder: Path, *, kind: str = "F32", files: int = 1) -> Path:
    """Write a checkpoint into ``folder``: tensors of type ``kind``, spread over ``files`` files."""
    config, _, tokenizer = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    tensors = weights(family)
    names = [*tensors]
    for at in range(files):
        name = "model.safetensors" if files == 1 else f"model-{at + 1:05d}-of-{files:05d}.safetensors"
        write_safetensors(folder / name, {key: tensors[key] for key in names[at::files]}, kind)
    copy_tokenizer(tokenizer, folder)
    return folder


def weights(family: str) -> dict[str, Array]:
    """float32 tensors, the same on every machine."""
    random = np.random.default_rng(list(family.encode()))
    gain = 0.0 if "gemma" in family else 1.0  # Gemma stores the gain of a norm minus one
    return {name: _values(name, shape, gain, random) for name, shape in FAMILIES[family][1]()}


def _values(name: str, shape: tuple[int, ...], gain: float, random: np.random.Generator) -> Array:
    noise = random.standard_normal(shape)
    if "norm" in name.lower():
        return (noise * 0.1 + (0 if name.endswith("bias") else gain)).astype(np.float32)
    # Small embeddings make logits below one: llama.cpp's GELU comes from a table of float16, good to four digits.
    return (noise * (0.05 if "embed" in name else 0.2)).astype(np.float32)


def write_safetensors(path: Path, tensors: Mapping[str, Array], kind: str = "F32") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blocks, at = [], 0
    for name, tensor in tensors.items():
        data = stored(tensor, kind)
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        blocks.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


def stored(tensor: Array, kind: str) -> bytes:
    """The bytes of a tensor in safetensors; bfloat16 is rounded to nearest even."""
    if kind == "BF16":
        bits = tensor.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return tensor.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind]).tobytes()


def copy_tokenizer(name: str, folder: Path) -> None:
    """Copy the files of a tokenizer. Byte-level BPE tokenizers share one vocabulary and differ in their rule."""
    source, _, rule = name.partition("-")
    for path in sorted((GOLDEN / source).iterdir()):
        data = path.read_bytes()
        if rule and path.name == "tokenizer.json":
            tokenizer = json.loads(data)
            tokenizer["pre_tokenizer"] = PRETOKENIZERS[rule]
            tokenizer["model"]["ignore_merges"] = rule == "llama3"
            data = json.dumps(tokenizer, ensure_ascii=False).encode()
        (folder / path.name).write_bytes(data)


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, bytes_]}


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRETOKENIZERS: dict[str, dict[str, Any]] = {
    "llama3": _split(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"),
    "qwen2": _split(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"),
    "gpt2": _GPT2,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]},
}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
