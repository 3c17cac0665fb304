"""Drafts and batch padding in a real engine change the steps, never the text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from support.engines import EXACT, STORY, Blocks, ask, ids, reply_of, run

from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import DecodeStatus
from ollama_nb.engine.messages import CompletionRequest, EngineConfig

STORIES = STORY * 3
PROMPTS = STORIES + "Lily saw", STORIES + "Lily", "Tom had a dog. The dog was happy. " * 4 + "Tom", "Once upon a time"


@pytest.fixture
def eager(path: str) -> Iterator[Engine]:
    """An engine that uses every draft and pads every step."""
    engine = Engine(EngineConfig(path=path, n_seq=4, **EXACT))
    assert engine._context is not None
    engine._speculator.times = Blocks(engine._context.n_outputs)
    yield engine
    assert engine._context.extent(engine._context.scratch) == (-1, -1), "padding rows are removed"
    shifted = engine.counters["shifts"]  # a shifted window is not kept as a prefix
    for slot in engine._scheduler.slots.slots:
        assert shifted or engine._context.extent(slot.index)[1] == len(slot.cached) - 1, "rejected drafts are removed"
    engine.close()


def without_drafts(request: CompletionRequest) -> CompletionRequest:
    return msgspec.structs.replace(request, options=replace(request.options, draft_num_predict=0))


PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name of the girl": {"enum": ["Lily", "Anna"]}, "her age": {"type": "integer", "maximum": 99}},
        "required": ["name of the girl", "her age"],
        "additionalProperties": False,
    }
)
WAYS: list[dict[str, Any]] = [
    {"num_predict": 150},
    {"num_predict": 150, "temperature": 0.4, "seed": 7},
    {"num_predict": 150, "temperature": 0.8, "seed": 11, "top_k": 5, "repeat_penalty": 1.3},
    {"num_predict": 37},
    {"num_predict": 150, "stop": ("ball in", "dog was")},
    {"num_predict": 150, "num_ctx": 140},
    {"num_predict": 150, "num_ctx": 140, "shift": False},
    {"num_predict": 60, "format": '{"type":"array","items":{"enum":["red ball","park"]},"maxItems":9}'},
    {"num_predict": 60, "format": PERSON},
    {"num_predict": 100, "draft_num_predict": 2},
    {"num_predict": -1, "num_ctx": 64},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_reply_is_the_same_with_drafts_and_without(plain: Engine, eager: Engine, way: dict[str, Any]) -> None:
    requests = [ask(prompt, return_tokens=True, **way) for prompt in PROMPTS]
    expected = [run(plain, without_drafts(request))[0].result for request in requests]
    alone = [run(eager, request)[0].result for request in requests]
    assert alone == expected
    assert eager.counters["drafted"] > eager.counters["accepted"] > 0
    again = [msgspec.structs.replace(request, id=next(ids)) for request in requests]
    assert [reply.result for reply in run(eager, *again)] == expected


def test_drafts_save_steps(eager: Engine) -> None:
    request = ask(STORIES + "Lily saw", num_predict=150)
    run(eager, request)
    counters = eager.counters
    assert counters["output_tokens"] == 150
    assert counters["decodes"] < 100, "several tokens a step"
    assert counters["decodes"] + counters["accepted"] == 150
    assert counters["rows"] == {"1": counters["decodes"] - 1}, "draft rows do not count as replies"
    assert counters["prompt_tokens"] == len(eager.tokenize(request.prompt))


def test_dictated_property_names_save_steps(plain: Engine, eager: Engine) -> None:
    request = ask(num_predict=60, format=PERSON, return_tokens=True)
    expected = run(plain, without_drafts(request))[0].result
    before = eager.counters["decodes"]
    assert run(eager, request)[0].result == expected
    counters = eager.counters
    assert counters["accepted"] > 5
    assert counters["decodes"] - before < len(expected[2]) / 2


def test_log_probabilities_belong_to_their_tokens(plain: Engine, eager: Engine) -> None:
    request = ask(STORIES + "Lily saw", num_predict=60, logprobs=2)
    probs = [run(engine, asked)[0].logprobs for engine, asked in ((plain, without_drafts(request)), (eager, request))]
    assert eager.counters["accepted"] and len(probs[0]) == len(probs[1]) == 60
    for one, other in zip(*probs, strict=True):
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert [top.token for top in one.top] == [top.token for top in other.top]


def test_drafts_can_be_switched_off_per_request(eager: Engine) -> None:
    run(eager, ask(STORIES + "Lily saw", num_predict=100, draft_num_predict=0))
    assert eager.counters["drafted"] == 0


def test_any_schedule_gives_the_text_of_a_request_alone(plain: Engine, eager: Engine) -> None:
    """Arrivals, cancels and aborts at any step, with drafts and padding in all of them."""
    expected = {text: run(plain, without_drafts(ask(text, num_predict=80)))[0].text for text in PROMPTS}
    for seed in range(6):
        dice, asked, outs = random.Random(seed), {}, []
        while len(asked) < 10 or eager.busy:
            if len(asked) < 10 and dice.random() < 0.2:
                request = ask(dice.choice(PROMPTS), num_predict=80)
                asked[request.id] = request.prompt
                eager.submit(request)
            if asked and dice.random() < 0.03:
                eager.cancel(dice.choice(list(asked)))
            with pytest.MonkeyPatch.context() as patch:
                if dice.random() < 0.1:
                    patch.setattr(eager._context, "rearm", eager.abort)
                outs += eager.step()
        for id, prompt in asked.items():
            text, reason, _ = reply_of(outs, id).result
            assert text == expected[prompt] or (reason == "cancelled" and expected[prompt].startswith(text))
    assert eager.counters["accepted"] and eager.counters["padded"] and eager.counters["aborts"]


def test_padding_does_not_change_replies(plain: Engine, eager: Engine) -> None:
    requests = [ask(prompt, num_predict=40, draft_num_predict=0) for prompt in PROMPTS[1:]]
    expected = [run(plain, request)[0].result for request in requests]
    assert [reply.result for reply in run(eager, *requests)] == expected
    counters = eager.counters
    assert counters["max_rows"] == 3 and counters["padded"] >= counters["rows"]["3"] > 30
    assert counters["output_tokens"] == 120


def test_a_full_cache_only_disables_drafts_and_padding(eager: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request fails as long as leaving out drafts and padding frees enough cells."""
    context = eager._context
    assert context is not None
    decode, requests = context.decode, [ask(prompt, num_predict=30) for prompt in PROMPTS[:3]]
    monkeypatch.setattr(context, "decode", lambda rows: DecodeStatus.CACHE_FULL if rows == 4 else decode(rows))
    assert [reply.done.output_tokens for reply in run(eager, *requests)] == [30] * 3
    assert eager.counters["padded"] == 0


def test_a_damaged_row_within_a_draft_fails_its_request_only(eager: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request, other = ask(STORIES + "Lily saw", num_predict=150), ask("Once upon a time", num_predict=20)
    logits, context = eager._context.logits if eager._context else None, eager._context
    assert logits is not None

    def damaged() -> Any:
        rows = logits()
        if eager._speculator.drafts.get(request.id):
            rows[1] = float("nan")
        return rows

    monkeypatch.setattr(context, "logits", damaged)
    assert "NaN" in run(eager, request)[0].failure.message
    monkeypatch.undo()
    assert run(eager, other)[0].done.output_tokens == 20
