"""Embeddings compared with a reference computed without llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import embed, ids

from ollama_nb.engine.embedder import _fitting
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.messages import CompletionRequest, Embed, Embedded, EngineConfig, Failed
from ollama_nb.errors import ContextOverflow


@pytest.fixture(scope="module")
def minilm(models: Path) -> Iterator[Engine]:
    engine = Engine(EngineConfig(path=str(models / "all-MiniLM-L6-v2-q8_0.gguf"), n_ctx=4096, n_threads=1))
    yield engine
    engine.close()


def test_vectors_equal_the_reference(minilm: Engine, reference: dict[str, Any]) -> None:
    expected = reference["all-MiniLM-L6-v2"]["embeddings"]
    vectors, tokens = embed(minilm, [entry["text"] for entry in expected])
    assert vectors.dtype == np.float32 and vectors.shape == (len(expected), 384)
    assert tokens == sum(len(entry["tokens"]) for entry in expected)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    for entry, vector in zip(expected, vectors, strict=True):
        cosine = float(np.dot(entry["vector"], vector))
        assert cosine >= (0.999 if entry["text"] else 0.998), entry["text"]


def test_vectors_do_not_depend_on_the_batch(minilm: Engine) -> None:
    """Except for rounding: in another batch shape, attention sums in another order, in half precision."""
    texts = [f"text number {n} " * (n % 20) for n in range(60)]
    together, _ = embed(minilm, texts)
    for at in (0, 13, 19, 59):
        alone, _ = embed(minilm, [texts[at]])
        assert float(alone[0] @ together[at]) > 0.999


def test_a_long_input_is_truncated_or_refused(minilm: Engine) -> None:
    long = "cat " * 2000
    _, tokens = embed(minilm, [long])
    assert tokens == 512, "the trained context, including [CLS] and [SEP]"
    cut, cut_tokens = embed(minilm, [long], num_ctx=16)
    same, _ = embed(minilm, ["cat " * 14])
    assert cut_tokens == 16 and float(cut[0] @ same[0]) > 0.9999
    with pytest.raises(ContextOverflow, match="the input length exceeds the context length"):
        embed(minilm, [long], truncate=False)


def test_raw_vectors_are_not_of_unit_length(minilm: Engine) -> None:
    raw, _ = embed(minilm, ["a cat"], normalise=False)
    unit, _ = embed(minilm, ["a cat"])
    assert abs(np.linalg.norm(raw) - 1.0) > 0.01
    np.testing.assert_allclose(raw / np.linalg.norm(raw), unit, rtol=1e-5, atol=1e-6)


def test_an_embedding_model_refuses_to_generate(minilm: Engine) -> None:
    minilm.submit(CompletionRequest(id=5, prompt="hello"))
    (last,) = minilm.step()
    assert isinstance(last, Failed) and last.status == 400 and not minilm.busy


def test_a_language_model_gives_mean_vectors(models: Path) -> None:
    engine = Engine(EngineConfig(path=str(models / "stories260K-f32.gguf"), n_ctx=256, n_threads=1))
    vectors, _ = embed(engine, ["Once upon a time", "Once upon a time", "The dog ran"])
    assert vectors.shape == (3, 64)
    assert float(vectors[0] @ vectors[1]) > 0.9999 > float(vectors[0] @ vectors[2])
    engine.close()


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 200), st.integers(1, 8))
def test_a_piece_is_as_large_as_possible(lengths: list[int], budget: int, n_seq: int) -> None:
    count = _fitting([[0] * length for length in lengths], budget, n_seq)
    assert count <= n_seq and sum(lengths[:count]) <= budget
    assert count == len(lengths) or count == n_seq or sum(lengths[: count + 1]) > budget


def test_an_input_larger_than_a_piece_is_a_piece() -> None:
    assert _fitting([[0] * 9, [0]], 5, 4) == 1


def test_others_are_served_between_the_pieces_of_a_bulk_request(minilm: Engine) -> None:
    """A bulk request of 600 inputs and then 3 small ones of other clients: each waits for at most one piece."""
    bulk, small = Embed(id=next(ids), inputs=tuple(f"text {n} " * 8 for n in range(600)), client="bulk"), []
    minilm.submit(bulk)
    assert minilm.step() == []
    for client in ("a", "b", "bulk"):
        small.append(Embed(id=next(ids), inputs=("a cat",), client=client))
        minilm.submit(small[-1])
    assert [[out.id for out in minilm.step()] for _ in range(3)] == [[request.id] for request in small]
    steps = 0
    while not (outs := minilm.step()):
        steps += 1
    (found,) = outs
    assert isinstance(found, Embedded) and found.id == bulk.id and steps > 10 and not minilm.busy
    alone, _ = embed(minilm, bulk.inputs[590:591])
    rows = np.frombuffer(found.vectors, "<f4").reshape(600, -1)
    assert float(alone[0] @ rows[590]) > 0.999


def test_a_cancelled_bulk_request_ends_alone(minilm: Engine) -> None:
    one, two = (Embed(id=next(ids), inputs=("a cat",) * 100) for _ in range(2))
    for request in (one, two):
        minilm.submit(request)
    minilm.step()
    minilm.cancel(one.id)
    outs = []
    while minilm.busy:
        outs += minilm.step()
    assert [(out.id, type(out)) for out in outs] == [(one.id, Failed), (two.id, Embedded)]


@pytest.mark.parametrize("length", range(-2, 3))
def test_every_input_over_the_limit_is_reported_or_refused(minilm: Engine, length: int) -> None:
    """G17: limits of the model and of num_ctx, as text and as token ids; [CLS] and [SEP] count."""
    for num_ctx, limit in ((0, 512), (100, 100)):
        for item in ("cat " * (limit - 2 + length), (2368,) * (limit + length)):
            job = minilm.pool(Embed(inputs=("a", item), num_ctx=num_ctx))[1]
            assert (job.truncated, job.limit) == ([1] if length > 0 else [], limit)
            assert job.tokens == 3 + min(limit, limit + length)
            strict = Embed(inputs=("a", item), num_ctx=num_ctx, truncate=False)
            if length > 0:
                with pytest.raises(ContextOverflow):
                    minilm.pool(strict)
            else:
                minilm.pool(strict)
