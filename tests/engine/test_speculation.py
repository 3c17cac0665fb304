"""Drafts and padding rows in a real engine change how steps look, never what is said."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ollama_nb.api.options import Options
from ollama_nb.engine.config import EngineConfig
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import Decoded
from ollama_nb.engine.output import FailOut, FinishOut, Output, TextOut
from ollama_nb.engine.rows import RowTimes
from ollama_nb.engine.sequence import Request

ids = itertools.count(1)
STORY = "Lily saw a big red ball in the park. She wanted to play with the ball. " * 3
PROMPTS = STORY + "Lily saw", STORY + "Lily", "Tom had a dog. The dog was happy. " * 4 + "Tom", "Once upon a time"

EXACT: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "kv_cache_type": "f32", "flash_attention": False}
"""Half precision in attention would make near ties depend on the shape of the batch: some thousandths in a logit."""


class Blocks(RowTimes):
    """Only steps of whole blocks of four are cheap, and all of them equally."""

    def seconds(self, rows: int) -> float | None:
        return 1.0 if rows % 4 else 0.5

    def fresh(self, rows: int) -> bool:
        return True

    def rounded(self, rows: int) -> int:
        return -(-rows // 4) * 4 if rows > 1 else 1


@pytest.fixture(scope="module")
def path(models: Path) -> str:
    return str(models / "stories260K-f32.gguf")


@pytest.fixture(scope="module")
def plain(path: str) -> Iterator[Engine]:
    """One sequence: nothing to round up; requests ask for no drafts."""
    engine = Engine(EngineConfig(path=path, n_seq=1, **EXACT))
    yield engine
    engine.close()


@pytest.fixture
def eager(path: str) -> Iterator[Engine]:
    """Whatever is guessed is drafted, and every step is rounded up."""
    engine = Engine(EngineConfig(path=path, n_seq=4, **EXACT))
    assert engine._context is not None
    engine._speculator.times = Blocks(engine._context.n_outputs)
    yield engine
    assert engine._context.extent(engine._context.scratch) == (-1, -1), "no padding row stays in memory"
    shifted = engine.counters["shifts"]  # leaves cells that are no prefix
    for slot in engine._scheduler.slots.slots:
        assert shifted or engine._context.extent(slot.index)[1] == len(slot.left) - 1, "no draft stays in memory"
    engine.close()


def ask(prompt: str, options: dict[str, Any] | None = None, **fields: Any) -> Request:
    return Request(id=next(ids), prompt=prompt, options=Options(**{"temperature": 0.0, **(options or {})}), **fields)


def without_drafts(request: Request) -> Request:
    return msgspec.structs.replace(request, options=replace(request.options, draft_num_predict=0))


def run(engine: Engine, *requests: Request) -> list[list[Output]]:
    for request in requests:
        engine.submit(request)
    outs: list[Output] = []
    while engine.busy:
        outs += engine.step()
    return [[out for out in outs if out.id == request.id] for request in requests]


def said(outs: list[Output]) -> tuple[str, str, int, tuple[int, ...]]:
    last = outs[-1]
    assert isinstance(last, FinishOut), last
    text = "".join(out.text for out in outs if isinstance(out, TextOut))
    return text, last.reason, last.output_tokens, last.tokens


WAYS: list[dict[str, Any]] = [
    {"options": {"num_predict": 150}},
    {"options": {"num_predict": 150, "temperature": 0.4, "seed": 7}},
    {"options": {"num_predict": 150, "temperature": 0.8, "seed": 11, "top_k": 5, "repeat_penalty": 1.3}},
    {"options": {"num_predict": 37}},
    {"options": {"num_predict": 150, "stop": ("ball in", "dog was")}},
    {"options": {"num_predict": 150}, "num_ctx": 140},
    {"options": {"num_predict": 150}, "num_ctx": 140, "shift": False},
    {"options": {"num_predict": 60}, "format": '{"type":"array","items":{"enum":["red ball","park"]},"maxItems":9}'},
    {"options": {"num_predict": 100, "draft_num_predict": 2}},
    {"options": {"num_predict": -1}},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_reply_is_the_same_with_drafts_and_without(plain: Engine, eager: Engine, way: dict[str, Any]) -> None:
    requests = [ask(prompt, return_tokens=True, **way) for prompt in PROMPTS]
    expected = [said(run(plain, without_drafts(request))[0]) for request in requests]
    alone = [said(run(eager, request)[0]) for request in requests]
    assert alone == expected
    assert eager.counters["drafted"] > eager.counters["accepted"] > 0
    assert [
        said(outs) for outs in run(eager, *(msgspec.structs.replace(request, id=next(ids)) for request in requests))
    ] == expected


def test_drafts_spare_steps(eager: Engine) -> None:
    request = ask(STORY + "Lily saw", {"num_predict": 150})
    run(eager, request)
    counters = eager.counters
    assert counters["output_tokens"] == 150
    assert counters["decodes"] < 100, "several tokens a step"
    assert counters["decodes"] + counters["accepted"] == 150
    assert counters["rows"] == {"1": counters["decodes"] - 1}, "drafts are no replies"
    assert counters["prompt_tokens"] == len(eager.tokenize(request.prompt))


def test_log_probabilities_belong_to_their_tokens(plain: Engine, eager: Engine) -> None:
    request = ask(STORY + "Lily saw", {"num_predict": 60}, logprobs=2)
    probs = [
        [prob for out in run(engine, asked)[0] if isinstance(out, TextOut) for prob in out.logprobs]
        for engine, asked in ((plain, without_drafts(request)), (eager, request))
    ]
    assert eager.counters["accepted"] and len(probs[0]) == len(probs[1]) == 60
    for one, other in zip(*probs, strict=True):
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert [top.token for top in one.top] == [top.token for top in other.top]


def test_no_drafts_where_none_are_wanted(eager: Engine) -> None:
    run(eager, ask(STORY + "Lily saw", {"num_predict": 100, "draft_num_predict": 0}))
    assert eager.counters["drafted"] == 0


def test_any_schedule_gives_the_text_of_a_lone_request(plain: Engine, eager: Engine) -> None:
    """Arrivals, cancels and aborts at any step, with drafts and padding in all of them."""
    expected = {text: said(run(plain, without_drafts(ask(text, {"num_predict": 80})))[0])[0] for text in PROMPTS}
    for seed in range(6):
        dice, asked, outs = random.Random(seed), {}, []
        while len(asked) < 10 or eager.busy:
            if len(asked) < 10 and dice.random() < 0.2:
                request = ask(dice.choice(PROMPTS), {"num_predict": 80})
                asked[request.id] = request.prompt
                eager.submit(request)
            if asked and dice.random() < 0.03:
                eager.cancel(dice.choice(list(asked)))
            with pytest.MonkeyPatch.context() as patch:
                if dice.random() < 0.1:
                    patch.setattr(eager._context, "rearm", eager.abort)
                outs += eager.step()
        for id, prompt in asked.items():
            text, reason, _, _ = said([out for out in outs if out.id == id])
            assert text == expected[prompt] or (reason == "cancelled" and expected[prompt].startswith(text))
    assert eager.counters["accepted"] and eager.counters["padded"] and eager.counters["aborts"]


def test_padding_rows_are_nobodys(plain: Engine, eager: Engine) -> None:
    requests = [ask(prompt, {"num_predict": 40, "draft_num_predict": 0}) for prompt in PROMPTS[1:]]
    expected = [said(run(plain, request)[0]) for request in requests]
    assert [said(outs) for outs in run(eager, *requests)] == expected
    counters = eager.counters
    assert counters["max_rows"] == 3 and counters["padded"] >= counters["rows"]["3"] > 30
    assert counters["output_tokens"] == 120


def test_memory_without_room_for_extra_rows_serves_without_them(eager: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full memory fails nobody while leaving out drafts and padding helps."""
    context = eager._context
    assert context is not None
    decode, requests = context.decode, [ask(prompt, {"num_predict": 30}) for prompt in PROMPTS[:3]]
    monkeypatch.setattr(context, "decode", lambda rows: Decoded.NO_ROOM if rows == 4 else decode(rows))
    assert [said(outs)[2] for outs in run(eager, *requests)] == [30] * 3
    assert eager.counters["padded"] == 0


def test_a_damaged_row_within_a_draft_fails_its_request_only(eager: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request, other = ask(STORY + "Lily saw", {"num_predict": 150}), ask("Once upon a time", {"num_predict": 20})
    logits, context = eager._context.logits if eager._context else None, eager._context
    assert logits is not None

    def damaged() -> Any:
        rows = logits()
        if eager._speculator.drafts.get(request.id):
            rows[1] = float("nan")
        return rows

    monkeypatch.setattr(context, "logits", damaged)
    (first,) = run(eager, request)
    assert isinstance(first[-1], FailOut) and "NaN" in first[-1].message
    monkeypatch.undo()
    assert said(run(eager, other)[0])[2] == 20
