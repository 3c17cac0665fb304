"""Cancellation in any state, failed decodes and a full KV cache: other requests continue."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
from support.engines import STORY, Reply, ask, collect, run

from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import DecodeStatus
from ollama_nb.engine.messages import EngineConfig, Failed, Finished, Output

LONG = STORY * 30


# Cancellation


def test_cancelling_a_running_reply_frees_its_slot(engine: Engine) -> None:
    request = ask()
    engine.submit(request)
    outs = [out for _ in range(5) for out in engine.step()]
    engine.cancel(request.id)
    outs += engine.step()
    reply = Reply(outs)
    assert reply.done.reason == "cancelled" and reply.text.startswith(", there")
    assert engine.counters["busy_slots"] == 0


def test_a_waiting_request_can_be_cancelled(engine: Engine) -> None:
    requests = [ask(f"{n} dogs", num_predict=20) for n in range(9)]
    for request in requests:
        engine.submit(request)
    engine.step()
    engine.cancel(requests[8].id)
    engine.cancel(12345678)
    outs = engine.step()
    assert [out.reason for out in outs if isinstance(out, Finished)] == ["cancelled"]
    collect(engine)


def test_a_request_can_be_cancelled_before_the_first_step(engine: Engine) -> None:
    request = ask()
    engine.submit(request)
    engine.cancel(request.id)
    assert [type(out) for out in engine.step()] == [Finished]


def test_cancelling_aborts_the_decode_of_a_prompt(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancellation comes from another thread during the native call."""
    engine = Engine(EngineConfig(path=path, n_ctx=512, n_seq=2, n_threads=1))
    request, other = ask(LONG, num_ctx=512), ask(num_predict=64)
    context = engine._context
    assert context is not None
    decode = context.decode

    def decode_while_cancelled(count: int) -> Any:
        thread = threading.Thread(target=engine.cancel, args=(request.id,))
        thread.start()
        thread.join()
        return decode(count)

    engine.submit(request)
    engine.submit(other)
    monkeypatch.setattr(context, "decode", decode_while_cancelled)
    assert engine.step() == []
    monkeypatch.setattr(context, "decode", decode)
    assert engine.counters["aborts"] == 1
    outs: list[Output] = []
    while engine.busy:
        outs += engine.step()
    assert Reply([out for out in outs if out.id == request.id]).done.reason == "cancelled"
    assert Reply([out for out in outs if out.id == other.id]).text.startswith(", there was a little girl named Lily")
    engine.close()


@pytest.mark.parametrize("background", [True, False])
def test_a_new_request_stops_the_decode_of_background_prompts(
    path: str, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """Nothing is lost: the prompt is read after the other request."""
    engine = Engine(EngineConfig(path=path, n_ctx=512, n_seq=2, n_threads=1))
    (alone,) = run(engine, ask(LONG, num_ctx=512, num_predict=4))
    engine._scheduler.slots.evict()
    engine._clear_memory()
    slow, other = ask(LONG, num_ctx=512, num_predict=4, background=background), ask(num_predict=4)
    context = engine._context
    assert context is not None
    decode = context.decode

    def decode_while_hurried(count: int) -> Any:
        engine.hurry()
        return decode(count)

    engine.submit(slow)
    monkeypatch.setattr(context, "decode", decode_while_hurried)
    outs: list[Output] = engine.step()
    monkeypatch.setattr(context, "decode", decode)
    assert engine.counters["aborts"] == background
    engine.submit(other)
    while engine.busy:
        outs += engine.step()
    assert Reply([out for out in outs if out.id == slow.id]).text == alone.text
    assert (outs[-1].id == slow.id) is background
    engine.close()


def test_an_aborted_step_is_repeated(
    engine: Engine, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reference["stories260K"]["greedy"][1]
    engine.submit(ask(expected["prompt"], num_predict=64))
    outs: list[Output] = []
    for n in itertools.count():
        with monkeypatch.context() as patch:
            if n % 3 == 0:
                patch.setattr(engine._context, "rearm", engine.abort)  # abort just after the step has started
            outs += engine.step()
        if not engine.busy:
            break
    assert Reply(outs).text == expected["text"]


# Errors


def test_a_nan_fails_its_own_request_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    context = engine._context
    assert context is not None
    logits = context.logits

    def damaged() -> np.ndarray:
        rows = logits()
        rows[0] = np.nan
        return rows

    requests = ask(num_predict=30), ask("The dog", num_predict=30)
    for request in requests:
        engine.submit(request)
    outs = [out for _ in range(3) for out in engine.step()]
    monkeypatch.setattr(context, "logits", damaged)
    outs += engine.step()
    monkeypatch.undo()
    while engine.busy:
        outs += engine.step()
    first, second = (Reply([out for out in outs if out.id == request.id]) for request in requests)
    assert "NaN" in first.failure.message and first.failure.status == 500
    assert second.done.output_tokens == 30


def test_a_failed_decode_fails_its_batch_and_the_next_request_works(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = engine._context
    assert context is not None
    engine.submit(ask())
    engine.step()
    monkeypatch.setattr(context, "decode", lambda count: DecodeStatus.FAILED)
    assert [type(out) for out in engine.step()] == [Failed]
    monkeypatch.undo()
    (reply,) = run(engine, ask(num_predict=10))
    assert reply.text.startswith(", there was")


def test_a_full_cache_evicts_prefixes_first(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(EngineConfig(path=path, n_ctx=128, n_seq=2, n_threads=1))
    run(engine, ask("The dog was happy", num_predict=3))
    context = engine._context
    assert context is not None
    first, second = ask(num_predict=20), ask("Tom", num_predict=20)
    engine.submit(first)
    assert engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(context, "decode", lambda count: DecodeStatus.CACHE_FULL)
        assert engine.step() == [], "the prefix of the first request is evicted"
        assert context.extent(0) == (-1, -1) or context.extent(1) == (-1, -1)
        engine.submit(second)
        failures = [out for _ in range(3) for out in engine.step() if isinstance(out, Failed)]
    assert failures[0].id == second.id and failures[0].status == 503
    engine.close()
