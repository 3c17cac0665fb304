"""A draft model beside its target: same replies, fewer steps, a KV cache that follows, unsuitable models refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.engines import EXACT, STORY, Flat, ask, ids, reply_of, run

from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import DecodeStatus
from ollama_nb.engine.messages import CompletionRequest, EngineConfig
from ollama_nb.engine.speculation import DraftModel
from ollama_nb.errors import LoadError
from ollama_nb.sprout import GGUF

PROMPTS = "Once upon a time", STORY + "Lily", STORY + "Tom had a dog. The dog was", "Zoë said: 你好."
DRAFTS = "stories260K-f32.gguf", "stories260K-q4_0.gguf"

Load = Callable[..., Engine]


@pytest.fixture
def load(path: str, models: Path) -> Iterator[Load]:
    """Engines with a draft model that takes no time; at the end its KV cache holds the tokens that it tracks."""
    made: list[Engine] = []

    def load(draft: str = DRAFTS[1], **config: Any) -> Engine:
        engine = Engine(EngineConfig(path=path, draft=str(models / draft), **{"n_seq": 4, **EXACT, **config}))
        made.append(engine)
        assert engine._context is not None
        engine._speculator.times = Flat(engine._context.n_outputs)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DraftModel, "round_seconds", lambda self, replies: 0.0)
        yield load
    for engine in made:
        check_memory(draft_model_of(engine))
        engine.close()


def draft_model_of(engine: Engine) -> DraftModel:
    assert engine._speculator.draft_model is not None
    return engine._speculator.draft_model


def check_memory(draft_model: DraftModel) -> None:
    for slot, held in enumerate(draft_model._held):
        assert draft_model.context.extent(slot) == ((0, len(held) - 1) if held else (-1, -1))


def alone(plain: Engine, request: CompletionRequest) -> tuple[str, str, tuple[int, ...]]:
    without = msgspec.structs.replace(request, options=replace(request.options, draft_num_predict=0))
    return run(plain, without)[0].result


WAYS: list[dict[str, Any]] = [
    {"num_predict": 120},
    {"num_predict": 120, "temperature": 0.7, "seed": 7},
    {"num_predict": 120, "temperature": 1.0, "seed": 3, "top_k": 5, "repeat_penalty": 1.3},
    {"num_predict": 33, "draft_num_predict": 2},
    {"num_predict": 150, "num_ctx": 96},
    {"num_predict": 60, "format": '{"type":"array","items":{"enum":["red ball","park"]},"maxItems":9}'},
]


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_reply_is_the_same_with_a_draft_model_and_without(
    plain: Engine, load: Load, way: dict[str, Any], draft: str
) -> None:
    engine = load(draft)
    requests = [ask(prompt, return_tokens=True, **way) for prompt in PROMPTS]
    expected = [alone(plain, request) for request in requests]
    assert [run(engine, request)[0].result for request in requests] == expected
    again = [msgspec.structs.replace(request, id=next(ids)) for request in requests]
    assert [reply.result for reply in run(engine, *again)] == expected
    counters = engine.counters
    assert counters["drafted"] >= counters["accepted"] > 0
    assert counters["model_drafted"] > 0 and counters["model_accepted"] <= counters["accepted"]


def test_replies_report_their_draft_tokens(load: Load) -> None:
    engine = load(DRAFTS[0])
    replies = run(engine, *(ask(prompt, num_predict=80) for prompt in PROMPTS))
    without = run(engine, ask(PROMPTS[1], num_predict=20, draft_num_predict=0))[0]
    assert sum(reply.done.drafted for reply in replies) == engine.counters["drafted"]
    assert sum(reply.done.accepted for reply in replies) == engine.counters["accepted"] > 0
    for reply in replies:
        counts = [(text.drafted, text.accepted) for text in reply.texts]
        assert counts == sorted(counts) and counts[-1][0] <= reply.done.drafted
        assert reply.texts[0].prompt_tokens == reply.done.prompt_tokens
        assert not any(text.prompt_tokens or text.cached_tokens for text in reply.texts[1:])
    assert (without.done.drafted, without.done.accepted) == (0, 0) == (without.texts[-1].drafted, 0)
    assert without.texts[0].cached_tokens == without.done.cached_tokens > 0


def test_a_draft_model_saves_most_steps_of_a_text_without_repeats(load: Load) -> None:
    engine = load(DRAFTS[0])
    run(engine, ask("Once upon a time", num_predict=100))
    counters = engine.counters
    assert counters["decodes"] < 40 and counters["model_accepted"] >= 60
    assert counters["decodes"] + counters["accepted"] == counters["output_tokens"] == 100


def test_drafts_can_be_switched_off_per_request(load: Load) -> None:
    engine = load()
    run(engine, ask("Once upon a time", num_predict=30, draft_num_predict=0))
    assert engine.counters["drafted"] == 0


def test_any_schedule_gives_the_text_of_a_request_alone(plain: Engine, load: Load) -> None:
    """Arrivals, cancels and failing drafts at any step; one prompt takes the draft model several batches."""
    prompts = (*PROMPTS, STORY * 5)
    expected = {prompt: alone(plain, ask(prompt, num_predict=40))[0] for prompt in prompts}
    engine = load(n_seq=3, n_batch=32)
    context = draft_model_of(engine).context
    for seed in range(6):
        dice, asked, outs = random.Random(seed), {}, []
        while len(asked) < 8 or engine.busy:
            if len(asked) < 8 and dice.random() < 0.3:
                request = ask(dice.choice(prompts), num_predict=40)
                asked[request.id] = request.prompt
                engine.submit(request)
            if asked and dice.random() < 0.04:
                engine.cancel(dice.choice(list(asked)))
            with pytest.MonkeyPatch.context() as patch:
                if dice.random() < 0.1:
                    patch.setattr(context, "rearm", context.abort)
                elif dice.random() < 0.05:
                    patch.setattr(context, "decode", lambda count: DecodeStatus.CACHE_FULL)
                outs += engine.step()
            check_memory(draft_model_of(engine))
        for id, prompt in asked.items():
            text, reason, _ = reply_of(outs, id).result
            assert text == expected[prompt] or (reason == "cancelled" and expected[prompt].startswith(text))
    assert engine.counters["model_accepted"] > 0


def test_a_prefix_in_another_slot_is_shared(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(n_seq=2)
    draft_model = draft_model_of(engine)
    shares: list[int] = []
    share = draft_model.context.share

    def watched(source: int, target: int, count: int) -> bool:
        shares.append(count)
        return share(source, target, count)

    monkeypatch.setattr(draft_model.context, "share", watched)
    run(engine, ask(STORY * 3 + "Lily", num_predict=8), ask(STORY * 3 + "Tom", num_predict=8))
    assert len(shares) == 1 and shares[0] > 50


def test_facts_count_both_models(path: str, plain: Engine, load: Load) -> None:
    assert load(n_seq=1).facts.size > plain.facts.size


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        ("all-MiniLM-L6-v2-q8_0.gguf", 'architecture "bert" cannot draft'),
        ("missing.gguf", "no such file"),
        ("sprout", "token"),
    ],
)
def test_an_unsuitable_draft_model_is_refused_with_the_reason(models: Path, path: str, draft: str, reason: str) -> None:
    file = GGUF if draft == "sprout" else models / draft
    with pytest.raises(LoadError, match=reason) as caught:
        Engine(EngineConfig(path=path, draft=str(file), **EXACT))
    assert caught.value.message.startswith("the draft model cannot be used: ")
    assert "draft_num_predict 0" in caught.value.message


def test_one_token_that_differs_is_named(models: Path, path: str, tmp_path: Path) -> None:
    data = (models / "stories260K-q8_0.gguf").read_bytes()
    piece = "▁there".encode()
    assert data.count(piece) == 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(piece, "▁thera".encode()))
    with pytest.raises(LoadError, match=r'its token \d+ is "▁thera", but "▁there" in the model'):
        Engine(EngineConfig(path=path, draft=str(other), **EXACT))


def test_a_failing_draft_context_costs_only_drafts(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    monkeypatch.setattr(draft_model_of(engine).context, "decode", lambda count: DecodeStatus.FAILED)
    (reply,) = run(engine, ask("Once upon a time", num_predict=20))
    assert reply.done.reason == "length" and engine.counters["model_drafted"] == 0
