"""Small models for long prompts, made of stories260K: one with a longer context, one with a recurrent memory."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

N_EMBD, N_INNER, N_STATE, N_CONV, N_RANK, N_LAYER = 64, 128, 16, 4, 8, 2
CONTEXT = 4096


def long_stories(source: Path, target: Path) -> Path:
    """stories260K with a context of 4,096 tokens. Beyond 512 it talks nonsense, but always the same."""
    data = bytearray(source.read_bytes())
    at = data.index(key := b"llama.context_length") + len(key) + 4
    assert int.from_bytes(data[at : at + 4], "little") == 512
    data[at : at + 4] = CONTEXT.to_bytes(4, "little")
    target.write_bytes(data)
    return target


def tiny_mamba(source: Path, target: Path) -> Path:
    """Random weights in the shape of Mamba, with the vocabulary of stories260K."""
    dice = np.random.default_rng(7)
    writer = gguf.GGUFWriter(target, "mamba")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(N_LAYER)
    writer.add_ssm_conv_kernel(N_CONV)
    writer.add_ssm_inner_size(N_INNER)
    writer.add_ssm_state_size(N_STATE)
    writer.add_ssm_time_step_rank(N_RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    reader = gguf.GGUFReader(source)
    _copy_vocabulary(reader, writer)

    def add(name: str, *shape: int, scale: float = 0.3) -> None:
        writer.add_tensor(name, dice.normal(0, scale, shape).astype(np.float32))

    n_vocab = len(reader.fields["tokenizer.ggml.tokens"].contents())
    add("token_embd.weight", n_vocab, N_EMBD, scale=1.0)
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    for layer in range(N_LAYER):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", np.ones(N_EMBD, np.float32))
        add(block + "ssm_in.weight", 2 * N_INNER, N_EMBD)
        add(block + "ssm_conv1d.weight", N_INNER, N_CONV)
        add(block + "ssm_conv1d.bias", N_INNER)
        add(block + "ssm_x.weight", N_RANK + 2 * N_STATE, N_INNER)
        add(block + "ssm_dt.weight", N_INNER, N_RANK)
        add(block + "ssm_dt.bias", N_INNER)
        writer.add_tensor(block + "ssm_a", -np.exp(dice.normal(0, 1, (N_INNER, N_STATE))).astype(np.float32))
        add(block + "ssm_d", N_INNER)
        add(block + "ssm_out.weight", N_EMBD, N_INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _copy_vocabulary(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
