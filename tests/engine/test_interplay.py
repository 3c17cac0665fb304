"""All features together: adapters, drafts, the prefix cache on disk, shifts, formats, logprobs.

Rule: a reply is what the same request gives in an engine that drafts nothing, keeps nothing and serves no other.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.engines import EXACT, STORY, Flat, collect, ids, reply_of

from ollama_nb.api.options import Options
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.messages import Adapters, CompletionRequest, EngineConfig, Output, TokenProb
from ollama_nb.engine.speculation import DraftModel

PROMPTS = STORY * 3 + "Lily", STORY * 3 + "Tom had a dog. The dog", "Once upon a time"
CHOICES = '{"type":"array","items":{"enum":["red ball","park"]},"minItems":3,"maxItems":9}'
TEXTS = '{"type":"array","items":{"type":"string"},"minItems":9}'
WAYS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"num_predict": 50}, {"logprobs": 2}),
    ({"num_predict": 120}, {"num_ctx": 112}),
    ({"num_predict": 120, "temperature": 0.8, "seed": 5}, {"num_ctx": 112, "logprobs": 0}),
    ({"num_predict": 90, "stop": ("ball", "there was")}, {"logprobs": 1}),
    ({"num_predict": 60}, {"format": CHOICES}),
    ({"num_predict": 60, "stop": ('",',)}, {"format": TEXTS, "logprobs": 1}),
)
"""The second and the third shift their window repeatedly; the last one ends within its format."""

pytestmark = pytest.mark.usefixtures("free_disk")
Answer = tuple[str, str, tuple[int, ...], list[TokenProb]]


@pytest.fixture(scope="module")
def alone(path: str) -> Callable[[CompletionRequest], Answer]:
    @functools.cache
    def answer(request: CompletionRequest) -> Answer:
        engine = Engine(EngineConfig(path=str(path), n_seq=1, **EXACT))
        outs = collect(engine, request)
        engine.close()
        return answered(outs, 1)

    def answer_without_drafts(request: CompletionRequest) -> Answer:
        return answer(msgspec.structs.replace(request, id=1, options=replace(request.options, draft_num_predict=0)))

    return answer_without_drafts


@pytest.fixture
def load(path: str, models: Path, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Engines with a draft model that takes no time, and one folder for the prefix cache."""
    made: list[Engine] = []

    def load() -> Engine:
        disk = {"prefix_folder": str(tmp_path), "prefix_bytes": 1 << 28, "prefix_gain": 0.0}
        draft = str(models / "stories260K-q4_0.gguf")
        engine = Engine(EngineConfig(path=str(path), draft=draft, n_seq=3, n_batch=64, **EXACT, **disk))
        made.append(engine)
        assert engine._context is not None
        engine._speculator.times = Flat(engine._context.n_outputs)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DraftModel, "round_seconds", lambda self, replies: 0.0)
        patch.setattr("ollama_nb.engine.prefix_cache.MAX_WRITES", 100)
        yield load
    for engine in made:
        engine.close()


def answered(outs: list[Output], id: int) -> Answer:
    reply = reply_of(outs, id)
    return *reply.result, reply.logprobs


def same(mine: Answer, expected: Answer) -> bool:
    return mine[:3] == expected[:3] and alike(mine[3], expected[3])


def alike(mine: list[TokenProb], expected: list[TokenProb]) -> bool:
    """Whether tokens and log probabilities are equal up to rounding; near ties among the top tokens may be swapped."""
    return [prob.token for prob in mine] == [prob.token for prob in expected] and all(
        [one.logprob, *(top.logprob for top in one.top)]
        == pytest.approx([other.logprob, *(top.logprob for top in other.top)], abs=1e-3)
        for one, other in zip(mine, expected, strict=True)
    )


def ask(dice: random.Random, adapter_sets: tuple[Adapters, ...]) -> CompletionRequest:
    options, fields = dice.choice(WAYS)
    return CompletionRequest(
        id=next(ids),
        prompt=dice.choice(PROMPTS),
        adapters=dice.choice(adapter_sets),
        options=Options(**{"temperature": 0.0, **options}),
        return_tokens=True,
        **fields,
    )


def test_concurrent_requests_give_the_same_text_as_alone(
    load: Callable[[], Engine], alone: Callable[[CompletionRequest], Answer], adapter_sets: tuple[Adapters, ...]
) -> None:
    """A cancelled reply is a prefix of the full one. The second engine finds the prefixes of the first."""
    for seed in range(2):
        engine, dice = load(), random.Random(seed)
        asked: dict[int, CompletionRequest] = {}
        outs: list[Output] = []
        while len(asked) < 12 or engine.busy:
            if len(asked) < 12 and dice.random() < 0.2:
                request = ask(dice, adapter_sets)
                asked[request.id] = request
                engine.submit(request)
            if asked and dice.random() < 0.01:
                engine.cancel(dice.choice(list(asked)))
            if dice.random() < 0.02:
                engine.abort()
            outs += engine.step()
        for id, request in asked.items():
            mine, expected = answered(outs, id), alone(request)
            if mine[1] == "cancelled":
                assert expected[0].startswith(mine[0]) and alike(mine[3], expected[3][: len(mine[3])])
            else:
                assert same(mine, expected), request
        counters = engine.counters
        assert counters["model_accepted"] > 0 and counters["shifts"] > 0 and counters["cached_tokens"] > 0
        engine.flush(60.0)
        assert counters["disk_hits"] > 0 or not seed
