"""What llama.cpp answers for a GGUF file: tokens of a text, logits behind a prompt, the pooled vector of an encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ollama_nb.engine.adapters import Adapter
from ollama_nb.engine.llama import Context, Decoded, Model

Vector = npt.NDArray[np.float32]


def tokens_of(path: Path, texts: list[str]) -> list[list[int]]:
    model = Model(str(path), vocab_only=True)
    try:
        return [model.tokenize(text, add_special=False, parse_special=True) for text in texts]
    finally:
        model.close()


def pooled_of(path: Path, tokens: list[int]) -> Vector:
    """The mean of an encoder's last layer, as it is."""
    model = Model(str(path))
    context = Context(
        model, cells=64, n_seq=1, n_batch=64, n_ubatch=64, n_threads=1, flash_attention=False, kv_type="f32",
        pooling="mean",
    )  # fmt: skip
    try:
        _decode(context, tokens, [1] * len(tokens))
        return context.pooled(0).copy()
    finally:
        context.close()
        model.close()


def logits_of(path: Path, tokens: list[int], *, adapters: tuple[str, ...] = ()) -> Vector:
    """Behind the last token, in full precision throughout."""
    model = Model(str(path))
    context = Context(
        model, cells=64, n_seq=1, n_batch=64, n_ubatch=64, n_threads=1, flash_attention=False, kv_type="f32",
    )  # fmt: skip
    try:
        if adapters:
            context.use(tuple(map(Adapter, adapters)))
        _decode(context, tokens, [0] * (len(tokens) - 1) + [1])
        return context.logits()[0].copy()
    finally:
        context.close()
        model.close()


def _decode(context: Context, tokens: list[int], outputs: list[int]) -> None:
    count = len(tokens)
    context.tokens[:count], context.positions[:count] = tokens, np.arange(count)
    context.sequences[:count], context.outputs[:count] = 0, outputs
    assert context.decode(count) is Decoded.DONE
