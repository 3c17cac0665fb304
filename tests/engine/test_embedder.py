"""Embeddings compared with a reference computed without llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_nb.engine.embedder import groups
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.messages import CompletionRequest, EngineConfig, Failed
from ollama_nb.errors import ContextOverflow


@pytest.fixture(scope="module")
def minilm(models: Path) -> Iterator[Engine]:
    engine = Engine(EngineConfig(path=str(models / "all-MiniLM-L6-v2-q8_0.gguf"), n_ctx=4096, n_threads=1))
    yield engine
    engine.close()


def test_vectors_equal_the_reference(minilm: Engine, reference: dict[str, Any]) -> None:
    expected = reference["all-MiniLM-L6-v2"]["embeddings"]
    vectors, tokens = minilm.embed([entry["text"] for entry in expected])
    assert vectors.dtype == np.float32 and vectors.shape == (len(expected), 384)
    assert tokens == sum(len(entry["tokens"]) for entry in expected)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    for entry, vector in zip(expected, vectors, strict=True):
        cosine = float(np.dot(entry["vector"], vector))
        assert cosine >= (0.999 if entry["text"] else 0.998), entry["text"]


def test_vectors_do_not_depend_on_the_batch(minilm: Engine) -> None:
    """Except for rounding: in another batch shape, attention sums in another order, in half precision."""
    texts = [f"text number {n} " * (n % 20) for n in range(60)]
    together, _ = minilm.embed(texts)
    for at in (0, 13, 19, 59):
        alone, _ = minilm.embed([texts[at]])
        assert float(alone[0] @ together[at]) > 0.999


def test_a_long_input_is_truncated_or_refused(minilm: Engine) -> None:
    long = "cat " * 2000
    _, tokens = minilm.embed([long])
    assert tokens == 512, "the trained context, including [CLS] and [SEP]"
    cut, cut_tokens = minilm.embed([long], num_ctx=16)
    same, _ = minilm.embed(["cat " * 14])
    assert cut_tokens == 16 and float(cut[0] @ same[0]) > 0.9999
    with pytest.raises(ContextOverflow, match="the input length exceeds the context length"):
        minilm.embed([long], truncate=False)


def test_raw_vectors_are_not_of_unit_length(minilm: Engine) -> None:
    raw, _ = minilm.embed(["a cat"], normalise=False)
    unit, _ = minilm.embed(["a cat"])
    assert abs(np.linalg.norm(raw) - 1.0) > 0.01
    np.testing.assert_allclose(raw / np.linalg.norm(raw), unit, rtol=1e-5, atol=1e-6)


def test_an_embedding_model_refuses_to_generate(minilm: Engine) -> None:
    minilm.submit(CompletionRequest(id=5, prompt="hello"))
    (last,) = minilm.step()
    assert isinstance(last, Failed) and last.status == 400 and not minilm.busy


def test_a_language_model_gives_mean_vectors(models: Path) -> None:
    engine = Engine(EngineConfig(path=str(models / "stories260K-f32.gguf"), n_ctx=256, n_threads=1))
    vectors, _ = engine.embed(["Once upon a time", "Once upon a time", "The dog ran"])
    assert vectors.shape == (3, 64)
    assert float(vectors[0] @ vectors[1]) > 0.9999 > float(vectors[0] @ vectors[2])
    engine.close()


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 200), st.integers(1, 8))
def test_groups_hold_each_input_once_and_fit(lengths: list[int], n_batch: int, n_seq: int) -> None:
    found = list(groups(lengths, n_batch, n_seq))
    assert sorted(at for group in found for at in group) == list(range(len(lengths)))
    assert all(len(group) <= n_seq and sum(lengths[at] for at in group) <= n_batch for group in found)
