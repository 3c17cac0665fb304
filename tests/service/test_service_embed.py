"""Embeddings: shapes, shortening, numbers that print short, and which error is whose."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from support.aio import in_loop
from support.service_harness import BAD_NAME, ServiceHarness

from ollama_nb.api.events import Embeddings
from ollama_nb.api.requests import EmbedRequest
from ollama_nb.errors import OllamaError, RunnerCrashed
from ollama_nb.service.embed import Vectors, cut, pieces, shortest
from ollama_nb.service.requests import GENERATING


def ask(harness: ServiceHarness, *inputs: str, old: bool = False, model: str = "m", **fields: Any) -> Embeddings:
    call = harness.service.embeddings if old else harness.service.embed
    return asyncio.run(call(EmbedRequest(model=model, inputs=inputs or None, **fields)))


@pytest.fixture
def harness(harness: ServiceHarness) -> ServiceHarness:
    harness.make("m", "all-MiniLM-L6-v2-q8_0.gguf")
    return harness


def test_vectors_in_order(harness: ServiceHarness) -> None:
    found = ask(harness, "a b", "", "abc")
    assert tuple(found.vectors) == ((3.0, 4.0, 3.0, 0.1), (3.0, 4.0, 0.0, 0.1), (3.0, 4.0, 3.0, 0.1))
    assert found.stats is not None
    assert found.stats.prompt_tokens == 3
    assert found.stats.total_seconds >= found.stats.load_seconds > 0


def test_background_requests_are_computed_in_pieces() -> None:
    whole = ("a" * 3000, "b" * 1000, "c" * 1000, "d" * 100, tuple(range(2000)), "e")
    assert [[len(item) for item in piece] for piece in pieces(whole)] == [[3000], [1000, 1000], [100], [2000, 1]]
    assert list(pieces(())) == []


@in_loop
async def test_background_requests_let_others_go_first(harness: ServiceHarness) -> None:
    texts = ("a" * 3000, "b b", "c" * 3000)
    plain = await harness.service.embed(EmbedRequest(model="m", inputs=texts))
    with harness.service.requests.enter("", "other", "chat") as other:
        other.state = GENERATING
        task = asyncio.ensure_future(harness.service.embed(EmbedRequest(model="m", inputs=texts, background=True)))
        urgent = await harness.service.embed(EmbedRequest(model="m", inputs=("x",)))
        assert urgent.vectors and not task.done()
    found = await task
    assert list(found.vectors) == list(plain.vectors)
    assert found.stats is not None and plain.stats is not None
    assert found.stats.prompt_tokens == plain.stats.prompt_tokens == 4
    assert harness.pool.leases == 0


def test_dimensions_cut_and_scale_again(harness: ServiceHarness) -> None:
    assert ask(harness, "x", dimensions=2).vectors[:] == [(0.6, 0.8)]
    for as_it_is in (0, 4, 9):
        assert len(ask(harness, "x", dimensions=as_it_is).vectors[0]) == 4
    assert cut(np.zeros((1, 3), np.float32), 2).tolist() == [[0.0, 0.0]]


def test_numbers_print_as_short_as_float32_allows() -> None:
    row = np.random.default_rng(1).normal(size=200).astype(np.float32)
    told = shortest(row)
    assert np.array_equal(np.array(told, np.float32), row)
    assert max(len(repr(number)) for number in told) <= 16
    assert shortest(np.array([0.1, 1e-7, -2.0], np.float32)) == (0.1, 1e-7, -2.0)
    assert math.isnan(shortest(np.array([np.nan], np.float32))[0])


def test_vectors_are_converted_when_they_are_read() -> None:
    rows = np.array([[0.1, -2.0], [1e-7, 0.5]], np.float32)
    vectors = Vectors([rows, rows[:1]])
    assert (len(vectors), vectors[1], vectors[-1]) == (3, (1e-7, 0.5), (0.1, -2.0))
    assert list(vectors) == [(0.1, -2.0), (1e-7, 0.5), (0.1, -2.0)] and vectors[1:] == list(vectors)[1:]


def test_load_only(harness: ServiceHarness) -> None:
    assert ask(harness, keep_alive=9.0) == Embeddings(())
    assert harness.pool.acquired[0][2] == 9.0


@pytest.mark.parametrize(
    ("old", "fields", "status", "message"),
    [
        (False, {"model": ""}, 404, "model '' not found"),
        (True, {"model": ""}, 400, "model is required"),
        (False, {"model": "no"}, 404, 'model "no" not found, try pulling it first'),
        (True, {"model": "no"}, 404, 'model "no" not found, try pulling it first'),
        (False, {"model": "a b"}, 400, BAD_NAME),
        (False, {"model": "m:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
        (False, {"options": {"num_ctx": 2}, "truncate": False}, 400, "the input length exceeds the context length"),
        (True, {"options": {"num_ctx": 2}, "truncate": False}, 500, "the input length exceeds the context length"),
        (False, {"options": {"num_ctx": True}}, 400, 'option "num_ctx" must be of type integer'),
    ],
)
def test_errors(harness: ServiceHarness, old: bool, fields: dict[str, Any], status: int, message: str) -> None:
    with pytest.raises(OllamaError) as caught:
        ask(harness, "one two three four five", old=old, **fields)
    assert (caught.value.status, caught.value.message) == (status, message)
    assert harness.pool.leases == 0


def test_a_crash_stays_a_crash(harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(inputs: object, **_: object) -> None:
        raise RunnerCrashed("gone")

    monkeypatch.setattr(harness.pool.runner, "embed", crash)
    with pytest.raises(RunnerCrashed):
        ask(harness, "x")
