"""Scores of a cross-encoder compared with a NumPy implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.engines import embed, rank
from support.models import RANKER_CONTEXT, TinyRanker

from ollama_nb.engine.engine import Engine
from ollama_nb.engine.messages import EngineConfig
from ollama_nb.errors import BadRequest, ContextOverflow

QUERY = "why is the sky blue"
DOCUMENTS = ["the sky is blue", "grass is green", "rain falls", "the cat sat on the mat", "天 地", "blue", ""]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = TinyRanker().write(tmp_path_factory.mktemp("ranker") / "ranker.gguf")
    ranker = Engine(EngineConfig(path=str(path), n_ctx=512, n_threads=1))
    yield ranker
    ranker.close()


def test_scores_equal_the_reference(ranker: Engine) -> None:
    expected = [TinyRanker().score(QUERY, document) for document in DOCUMENTS]
    scores, tokens = rank(ranker, QUERY, DOCUMENTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=5e-3)
    assert max(expected) - min(expected) > 0.2, "a wrong order would fail the test"
    assert tokens == sum(len(f"{QUERY} {document}".split()) + 3 for document in DOCUMENTS)
    assert ranker.facts.pooling == "rank"


def test_a_pair_is_written_with_the_template_of_the_model(tmp_path: Path) -> None:
    path = TinyRanker().write(tmp_path / "ranker.gguf", template="[CLS] {query} is [SEP] {document} [SEP]")
    ranker = Engine(EngineConfig(path=str(path), n_ctx=512, n_threads=1))
    scores, _ = rank(ranker, "the sky", ["blue {query}", "green " * 100])
    assert scores[0] == pytest.approx(TinyRanker().score("the sky is", "blue [UNK] [UNK] [UNK]"), abs=5e-3)
    assert scores[1] == pytest.approx(TinyRanker().score("the sky is", "green " * (RANKER_CONTEXT - 6)), abs=5e-3)
    ranker.close()


def test_many_documents_together_and_alone(ranker: Engine) -> None:
    many = DOCUMENTS * 30
    scores, _ = rank(ranker, QUERY, many)
    for at in (0, 100, 209):
        np.testing.assert_allclose(rank(ranker, QUERY, [many[at]])[0][0], scores[at], atol=5e-3)
    assert rank(ranker, QUERY, [])[0].shape == (0,)


def test_a_long_document_is_truncated_and_a_long_query_refused(ranker: Engine) -> None:
    (score,), tokens = rank(ranker, "sky", ["blue " * 1000])
    assert tokens == RANKER_CONTEXT
    assert score == pytest.approx(TinyRanker().score("sky", "blue " * (RANKER_CONTEXT - 4)), abs=5e-3)
    assert rank(ranker, "sky", ["blue " * 1000], num_ctx=10)[1] == 10
    for query in ("sky " * 1000, "sky " * (RANKER_CONTEXT - 3)):
        with pytest.raises(ContextOverflow, match="the query leaves no room"):
            rank(ranker, query, ["blue"])


def test_rankers_do_not_embed_and_embedders_do_not_rank(ranker: Engine, models: Path) -> None:
    with pytest.raises(BadRequest, match="cannot make embeddings: use /api/rerank"):
        embed(ranker, ["x"])
    minilm = Engine(EngineConfig(path=str(models / "all-MiniLM-L6-v2-q8_0.gguf"), n_ctx=64, n_threads=1))
    with pytest.raises(BadRequest, match="does not rank"):
        rank(minilm, "a", ["b"])
    minilm.close()
