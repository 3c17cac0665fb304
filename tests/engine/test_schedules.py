"""Random schedules: each request gives the same text as alone, and every cell of the KV cache is accounted for.

Sixty-four random schedules of submit, cancel, abort, preempt and evict, on a model and caches in single precision. Half
precision in attention would make near ties depend on the shape of the batch, by some thousandths of a logit.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from support.engines import EXACT, STORY, Blocks, Reply, collect, ids

from ollama_nb.api.options import Options
from ollama_nb.engine.drafts import StepTimes
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import Context
from ollama_nb.engine.messages import CompletionRequest, EngineConfig, Failed, Finished, Output, TextOutput
from ollama_nb.engine.sequence import SequenceState

REQUESTS = 10
SEEDS = 16
PROMPTS = (
    "Once upon a time",
    "Once upon a time, there was a little girl named Lily." * 4,
    STORY * 2 + "Lily saw",
    STORY * 3 + "Lily",
    STORY * 3 + "Tom had a dog. The dog was happy. " * 5 + "Tom",
    "Zoë said: 你好. " * 9,
)
WAYS: tuple[dict[str, Any], ...] = (
    {"num_predict": 30},
    {"num_predict": 1},
    {"num_predict": 90, "stop": ("ball in", "dog was")},
    {"num_predict": 120, "num_ctx": 96},
    {"num_predict": 120, "num_ctx": 160, "shift": False},
)
"""The fourth one shifts its window repeatedly, the fifth one ends when its window is full."""


Expected = Callable[[str, int], tuple[str, Finished]]


def load(path: str, times: Callable[[int], StepTimes] = StepTimes, **config: Any) -> Engine:
    engine = Engine(EngineConfig(path=path, **{**EXACT, **config}))
    engine._speculator.times = times(context_of(engine).n_outputs)
    return engine


def cramped(path: str) -> Engine:
    """A KV cache for a third of the slots' tokens: prefixes are evicted, and the youngest requests fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ollama_nb.engine.loading.Context", lambda model, **sizes: Context(model, **{**sizes, "cells": 512})
        )
        return load(path, Blocks, n_seq=3, n_batch=64)


def no_extra_rows(n_outputs: int) -> StepTimes:
    """Step times without drafts and padding."""
    return StepTimes(1)


SETUPS: dict[str, Callable[[str], Engine]] = {
    "as configured": functools.partial(load, n_seq=4),
    "no extra rows": functools.partial(load, times=no_extra_rows, n_seq=3, n_batch=32),
    "drafts and padding": functools.partial(load, times=Blocks, n_seq=6, n_batch=48),
    "cramped": cramped,
}


@pytest.fixture(scope="module")
def alone(path: str) -> Expected:
    """The result of a request in an engine that never served another one."""

    @functools.cache
    def answer(prompt: str, way: int) -> tuple[str, Finished]:
        engine = load(path, no_extra_rows, n_seq=1)
        request = ask(prompt, way, draft_num_predict=0)
        outs = collect(engine, request)
        engine.close()
        return result(outs)

    return answer


@pytest.fixture(scope="module", params=SETUPS)
def crowd(request: pytest.FixtureRequest, path: str) -> Iterator[Engine]:
    """An engine for all schedules of its setup; at the end, everything that they test must have happened."""
    engine = SETUPS[request.param](path)
    yield engine
    counters = engine.counters
    assert all(counters[name] for name in ("cached_tokens", "shifts", "aborts", "output_tokens"))
    assert counters["preemptions"] or engine.config.n_seq > 4
    assert counters["max_rows"] == engine.config.n_seq
    extra = counters["accepted"] and counters["padded"]
    assert extra if isinstance(engine._speculator.times, Blocks) else not extra or engine._speculator.times.max_rows > 1
    engine.close()


def context_of(engine: Engine) -> Context:
    assert engine._context is not None
    return engine._context


def ask(prompt: str, way: int, **options: Any) -> CompletionRequest:
    fields = {**WAYS[way], **options}
    extra = {name: fields.pop(name) for name in ("num_ctx", "shift") if name in fields}
    greedy = Options(temperature=0.0, **fields)
    return CompletionRequest(id=next(ids), prompt=prompt, options=greedy, return_tokens=True, **extra)


def result(outs: list[Output]) -> tuple[str, Finished]:
    reply = Reply(outs)
    return reply.text, reply.done


def check_memory(engine: Engine) -> None:
    """Check that slots and sequences correspond, and that llama.cpp holds exactly the tokens that we track."""
    scheduler, context = engine._scheduler, context_of(engine)
    waiting, running, slots = scheduler.waiting, scheduler.running, scheduler.slots.slots
    assert sorted(seq.id for seq in (*waiting, *running)) == sorted(engine._streams)
    assert all(seq.state is SequenceState.WAITING and seq.slot == -1 for seq in waiting)
    assert {seq.slot: seq for seq in running} == {slot.index: slot.owner for slot in slots if slot.owner is not None}
    for slot in slots:
        held = len(slot.cached) if slot.owner is None else slot.owner.n_past
        assert context.extent(slot.index) == ((0, held - 1) if held else (-1, -1)), (slot, held)
    assert context.extent(context.scratch) == (-1, -1), "padding rows are removed after their step"


def evict(engine: Engine) -> bool:
    """Evict the least recently used prefix, as a full KV cache does."""
    cut = engine._scheduler.slots.evict()
    engine._apply([cut] if cut is not None else [])
    return cut is not None


def run_schedule(engine: Engine, dice: random.Random) -> tuple[dict[int, tuple[str, int]], list[Output]]:
    """Run one random schedule; return the requests by id, and all outputs."""
    asked: dict[int, tuple[str, int]] = {}
    outs: list[Output] = []
    eager = dice.choice((0.05, 0.3, 0.9))
    while len(asked) < REQUESTS or engine.busy:
        while len(asked) < REQUESTS and dice.random() < eager:
            prompt, way = dice.choice(PROMPTS), dice.randrange(len(WAYS))
            request = ask(prompt, way, **dice.choice(({}, {}, {"draft_num_predict": 0}, {"draft_num_predict": 3})))
            # A shifted window that is read again has other cells than one that was moved, and may give another text.
            request = msgspec.structs.replace(request, background=way != 3 and dice.random() < 0.3)
            asked[request.id] = prompt, way
            engine.submit(request)
        if asked and dice.random() < 0.04:
            engine.cancel(dice.choice(list(asked)))  # running, waiting, just submitted, or finished
        if dice.random() < 0.03:
            evict(engine)
        with pytest.MonkeyPatch.context() as patch:
            if dice.random() < 0.05:
                patch.setattr(context_of(engine), "rearm", engine.abort)
            outs += engine.step()
        check_memory(engine)
    return asked, outs


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_schedule_gives_the_text_of_a_request_alone(
    crowd: Engine, alone: Expected, seed: int, request: pytest.FixtureRequest
) -> None:
    asked, outs = run_schedule(crowd, random.Random(request.node.name))
    assert Counter(out.id for out in outs if not isinstance(out, TextOutput)) == Counter(list(asked)), (
        "each ends exactly once"
    )
    for id, (prompt, way) in asked.items():
        mine = [out for out in outs if out.id == id]
        whole, end = alone(prompt, way)
        if isinstance(mine[-1], Failed):
            assert mine[-1].status == 503 and "memory is full" in mine[-1].message
            assert whole.startswith("".join(out.text for out in mine if isinstance(out, TextOutput)))
            continue
        text, last = result(mine)
        if last.reason == "cancelled":
            assert whole.startswith(text)
            assert last.tokens == end.tokens[: len(last.tokens)], "no token is lost or doubled"
        else:
            assert (text, last.reason, last.tokens) == (whole, end.reason, end.tokens)
            assert (last.prompt_tokens, last.output_tokens) == (end.prompt_tokens, end.output_tokens)
    assert (crowd.busy, crowd.counters["busy_slots"], crowd.counters["waiting"]) == (False, 0, 0)
    if not seed % 4:  # else the next schedule finds the prefixes of this one
        while evict(crowd):
            check_memory(crowd)
        context = context_of(crowd)
        assert all(context.extent(seq) == (-1, -1) for seq in range(context.n_seq + 1)), "every cell is free"
