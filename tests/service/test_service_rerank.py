"""Reranking: two methods, one order, and the reply names the method."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.aio import in_loop
from support.models import TinyRanker
from support.service_harness import MODELS, ServiceHarness, collect

from ollama_nb.api.events import Ranking
from ollama_nb.api.requests import CreateRequest, EmbedRequest, RerankRequest
from ollama_nb.errors import BadRequest, OllamaError
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings


@dataclass
class RerankHarness:
    harness: ServiceHarness

    def ask(self, *documents: str, **fields: Any) -> Ranking:
        request = RerankRequest(**{"model": "m", "query": "q r", "documents": documents, **fields})
        return asyncio.run(self.harness.service.rerank(request))


@pytest.fixture
def rerank_harness(tmp_path: Path) -> RerankHarness:
    harness = ServiceHarness(tmp_path)
    harness.make("m", "all-MiniLM-L6-v2-q8_0.gguf")
    return RerankHarness(harness)


def test_cosine_of_a_plain_embedding_model(rerank_harness: RerankHarness) -> None:
    found = rerank_harness.ask("xxx", "x" * 50, "y" * 9, top_n=2)
    assert (found.method, found.prompt_tokens) == ("cosine", 5)
    assert [index for index, _ in found.results] == [0, 2]
    assert all(0.8 < score <= 1 for _, score in found.results)


def test_scores_of_a_model_that_ranks(rerank_harness: RerankHarness) -> None:
    runner = rerank_harness.harness.pool.runner
    runner.loaded = msgspec.structs.replace(runner.loaded, pooling="rank")
    found = rerank_harness.ask("a", "abc", "ab", "cba")
    assert found == Ranking(((1, 0.3), (3, 0.3), (2, 0.2), (0, 0.1)), "rank", 2), "equal scores keep their order"


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": ""}, 400, "model is required"),
        ({"model": "no"}, 404, "model 'no' not found"),
        ({"query": ""}, 400, "query is required"),
        ({"documents": ()}, 400, "documents: give at least one"),
        ({"top_n": 0}, 400, "top_n must be at least 1"),
        ({"strict": True, "ignored": ("x",)}, 400, "x"),
    ],
)
def test_errors(rerank_harness: RerankHarness, fields: dict[str, Any], status: int, message: str) -> None:
    with pytest.raises(OllamaError) as caught:
        rerank_harness.ask("a", **fields)
    assert (caught.value.status, caught.value.message) == (status, message)


@pytest.mark.model
@in_loop
async def test_real_models(tmp_path: Path) -> None:
    service = Service(Settings(models=tmp_path / "models", home=tmp_path / "nb"))
    await service.start()
    try:
        ranker = TinyRanker()
        files = {"ranker": ranker.write(tmp_path / "ranker.gguf"), "minilm": MODELS / "all-MiniLM-L6-v2-q8_0.gguf"}
        for name, file in files.items():
            digest = str(service.blobs.add_file(file))
            await collect(service.create(CreateRequest(model=name, files={"x.gguf": digest})))
        query, documents = "why is the sky blue", ("the cat sat on the mat", "the sky is blue", "rain falls")
        expected = {index: ranker.score(query, document) for index, document in enumerate(documents)}
        found = await service.rerank(RerankRequest(model="ranker", query=query, documents=documents))
        assert found.method == "rank"
        assert [index for index, _ in found.results] == sorted(expected, key=lambda index: -expected[index])
        assert dict(found.results) == pytest.approx(expected, abs=5e-3)
        with pytest.raises(BadRequest, match="use /api/rerank"):
            await service.embed(EmbedRequest(model="ranker", inputs=("x",)))
        found = await service.rerank(RerankRequest(model="minilm", query=query, documents=documents, top_n=1))
        assert (found.method, found.results[0][0]) == ("cosine", 1)
    finally:
        await service.close()
