"""The engine with a small real model: exact text, concurrent requests, prefixes, limits, stop strings."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from support.engines import Reply, ask, collect, ids, run

from ollama_nb.api.options import Options
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.messages import CompletionRequest, EngineConfig, Finished

# Exactness


def test_greedy_text_equals_the_reference(engine: Engine, reference: dict[str, Any]) -> None:
    for expected in reference["stories260K"]["greedy"]:
        (reply,) = run(engine, ask(expected["prompt"], num_predict=64, return_tokens=True))
        assert reply.text == expected["text"]
        assert list(reply.done.tokens) == expected["prompt_tokens"][1:] + expected["tokens"]
        assert (reply.done.reason, reply.done.prompt_tokens) == ("length", len(expected["prompt_tokens"]))
        counts = [text.prompt_tokens for text in reply.texts]
        assert counts == [len(expected["prompt_tokens"])] + [0] * (len(counts) - 1)
        assert [text.output_tokens for text in reply.texts] == list(range(1, 65)), "the number of tokens until then"


def test_eight_concurrent_requests_give_the_same_text_as_alone(path: str, reference: dict[str, Any]) -> None:
    engine = Engine(EngineConfig(path=path, n_ctx=512, n_seq=8, n_threads=1))
    greedy = reference["stories260K"]["greedy"]
    requests = [ask(greedy[n % 3]["prompt"], num_predict=64, draft_num_predict=0) for n in range(8)]
    outs = collect(engine, *requests)
    for n, request in enumerate(requests):
        assert Reply([out for out in outs if out.id == request.id]).text == greedy[n % 3]["text"]
    first_of_last = next(at for at, out in enumerate(outs) if out.id == requests[-1].id)
    last_of_first = next(at for at, out in enumerate(outs) if out.id == requests[0].id and isinstance(out, Finished))
    assert first_of_last < last_of_first
    assert engine.counters["rows"]["8"] >= 50 and engine.counters["max_rows"] == 8
    engine.close()


def test_any_schedule_gives_the_text_of_a_request_alone(path: str, reference: dict[str, Any]) -> None:
    """Few slots, long and short prompts with shared prefixes, cancels in every state, small batches."""
    prompts = [entry["prompt"] for entry in reference["stories260K"]["greedy"]]
    prompts += [prompts[0] + ", there was a little girl named Lily." * n for n in (1, 2, 6)]
    alone = Engine(EngineConfig(path=path, n_ctx=512, n_seq=1, n_threads=1))
    expected = {prompt: run(alone, ask(prompt, num_predict=24))[0].text for prompt in prompts}
    alone.close()
    crowd = Engine(EngineConfig(path=path, n_ctx=512, n_seq=3, n_batch=32, n_threads=1))
    for seed in range(8):
        dice = random.Random(seed)
        asked, outs, cancelled = {}, [], set()
        while len(asked) < 10 or crowd.busy:
            if len(asked) < 10 and dice.random() < 0.4:
                request = ask(dice.choice(prompts), num_predict=24)
                asked[request.id] = request
                crowd.submit(request)
            if asked and dice.random() < 0.06:
                cancelled.add(dice.choice(list(asked)))
                crowd.cancel(max(cancelled))
            outs += crowd.step()
        for id, request in asked.items():
            reply = Reply([out for out in outs if out.id == id])
            whole = expected[request.prompt]
            assert reply.text == whole or (reply.done.reason == "cancelled" and whole.startswith(reply.text))
    assert crowd.counters["busy_slots"] == 0
    crowd.close()


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(engine: Engine) -> None:
    seeded = {"options": Options(seed=42, temperature=1.0), "num_predict": 30}
    (alone,) = run(engine, ask(**seeded))
    together = run(engine, ask(**seeded), ask("The dog", **seeded), ask(**seeded), ask("Tom", options=Options()))
    assert together[0].text == together[2].text == alone.text
    assert run(engine, ask(**(seeded | {"options": Options(seed=43, temperature=1.0)})))[0].text != alone.text


# Prefixes


def test_a_cached_prefix_is_not_computed_again(engine: Engine, reference: dict[str, Any]) -> None:
    expected = reference["stories260K"]["greedy"][0]
    prompt = expected["prompt"] + expected["text"][:60]
    (cold,) = run(engine, ask(prompt, num_predict=20))
    (warm,) = run(engine, ask(prompt, num_predict=20))
    assert warm.text == cold.text
    assert warm.done.cached_tokens == warm.done.prompt_tokens - 1
    (longer,) = run(engine, ask(prompt + warm.text, num_predict=20))
    assert longer.done.cached_tokens > warm.done.prompt_tokens - 5


def test_a_common_prefix_of_eight_requests_is_read_once(path: str) -> None:
    engine = Engine(EngineConfig(path=path, n_ctx=512, n_seq=8, n_threads=1))
    story = "Lily saw a big red ball in the park. " * 10
    requests = [ask(story + name, num_predict=5) for name in ("Tom", "Ann", "Max", "Sue", "Ben", "Tim", "Mia", "Dad")]
    replies = run(engine, *requests)
    size = replies[0].done.prompt_tokens
    assert sum(reply.done.cached_tokens > size - 10 for reply in replies) == 7
    assert engine.counters["prompt_tokens"] < size + 8 * 10
    engine.close()


@pytest.mark.parametrize(("prompt", "slots"), [("Once upon a time", 8), ("Hi", 8), ("Once upon a time", 2)])
def test_a_group_reads_its_prompt_once(path: str, prompt: str, slots: int) -> None:
    """The prompts are shorter than the prefixes that other requests share."""
    engine = Engine(EngineConfig(path=path, n_ctx=512, n_seq=slots, n_threads=1))
    replies = run(engine, *(ask(prompt, num_predict=8, group=7) for _ in range(4)))
    size = replies[0].done.prompt_tokens
    assert [reply.done.cached_tokens for reply in replies] == [0] + [size - 1] * 3
    assert engine.counters["prompt_tokens"] == size + 3
    assert len({reply.text for reply in replies}) == 1
    engine.close()


# Finish reasons


def test_an_end_token_ends_the_reply(engine: Engine) -> None:
    (reply,) = run(engine, ask(num_predict=-1))
    assert (reply.done.reason, reply.done.output_tokens) == ("stop", 342), "341 tokens and the end token"
    assert "<s>" not in reply.text


def test_the_text_ends_before_a_stop_string(engine: Engine) -> None:
    (plain,) = run(engine, ask(num_predict=64))
    (reply,) = run(engine, ask(num_predict=64, stop=("the park", "nowhere")))
    assert reply.done.reason == "stop"
    assert reply.text == plain.text[: plain.text.index("the park")]
    assert (reply.done.stop_sequence, plain.done.stop_sequence) == ("the park", "")


@pytest.mark.parametrize(("num_predict", "tokens"), [(0, 0), (1, 1), (7, 7)])
def test_num_predict_limits_the_reply(engine: Engine, num_predict: int, tokens: int) -> None:
    (reply,) = run(engine, ask(num_predict=num_predict))
    assert (reply.done.reason, reply.done.output_tokens) == ("length", tokens)
    assert reply.done.prompt_tokens == 5 and reply.done.prompt_seconds > 0


def test_without_a_shift_a_full_context_ends_the_reply(engine: Engine) -> None:
    (reply,) = run(engine, ask(num_ctx=40, shift=False))
    assert (reply.done.reason, reply.done.prompt_tokens + reply.done.output_tokens) == ("length", 40)


def test_with_a_shift_the_reply_continues(engine: Engine) -> None:
    shifts = engine.counters["shifts"]
    (reply,) = run(engine, ask(num_ctx=40, num_predict=120, options=Options(seed=3, temperature=0.7)))
    assert reply.done.output_tokens > 60 or reply.done.reason == "stop"
    assert engine.counters["shifts"] > shifts
    (again,) = run(engine, ask(num_predict=64))
    assert again.text.startswith(", there was a little girl named Lily"), "a shifted window is not reused as a prefix"


def test_a_reply_without_num_predict_is_limited(engine: Engine) -> None:
    (reply,) = run(engine, ask("a", num_ctx=8, num_keep=0, presence_penalty=1.0, repeat_last_n=3))
    assert reply.done.output_tokens <= 80


def test_endless_repetition_ends_the_reply(engine: Engine) -> None:
    """A negative presence penalty makes the model repeat one token."""
    (reply,) = run(engine, ask(presence_penalty=-500.0, repeat_last_n=1))
    assert reply.done.reason == "length" and 30 < reply.done.output_tokens < 60


# Prompts


LONG = "Lily saw a big red ball in the park. " * 30


def test_a_long_prompt_loses_its_middle(engine: Engine) -> None:
    (reply,) = run(engine, ask(LONG, num_ctx=64, num_predict=3))
    assert reply.done.prompt_tokens == 64 - (64 - 5) // 2
    assert reply.done.prompt_tokens + reply.done.prompt_tokens_dropped == len(engine.tokenize(LONG))


@pytest.mark.parametrize("flags", [{"shift": False}, {"truncate": False}], ids=str)
def test_a_long_prompt_is_refused_when_nothing_may_be_dropped(engine: Engine, flags: dict[str, bool]) -> None:
    (reply,) = run(engine, ask(LONG, num_ctx=64, **flags))
    assert reply.failure.status == 400
    assert reply.failure.message.startswith("the prompt is longer than the context length currently available")


def test_num_ctx_is_limited_by_the_loaded_context(engine: Engine) -> None:
    (reply,) = run(engine, ask(LONG, num_ctx=1 << 40, num_predict=1))
    assert reply.done.prompt_tokens < 512


def test_a_bos_in_the_prompt_is_not_doubled(engine: Engine) -> None:
    plain, written = run(engine, ask(num_predict=9), ask("<s>Once upon a time", num_predict=9))
    assert (written.text, written.done.prompt_tokens) == (plain.text, plain.done.prompt_tokens)
    once, (bos, *rest) = engine.tokenize("<s>Once"), engine.tokenize("Once")
    assert once == [bos, *rest]
    assert engine.tokenize("<s><s>Once") == [bos, *engine.tokenize("<s>Once", add_special=False)], (
        "the second BOS belongs to the text"
    )
    assert bos not in engine.tokenize("<s>Once", parse_special=False)[1:]


def test_an_empty_prompt_starts_a_text(engine: Engine) -> None:
    (reply,) = run(engine, ask("", num_predict=8))
    assert reply.done.prompt_tokens == 1 and reply.text


def test_a_prompt_can_be_given_as_tokens(engine: Engine, reference: dict[str, Any]) -> None:
    expected = reference["stories260K"]["greedy"][0]
    (reply,) = run(engine, ask("", tokens=tuple(expected["prompt_tokens"]), num_predict=64))
    assert reply.text == expected["text"]


@pytest.mark.parametrize(
    "request_",
    [
        CompletionRequest(id=1, tokens=(1, 512)),
        CompletionRequest(id=1, tokens=(-1,)),
        CompletionRequest(id=1, prompt="x", options=Options(temperature=math.nan)),
        CompletionRequest(id=1, prompt="x", format="{"),
    ],
    ids=["unknown token", "negative token", "NaN", "bad format"],
)
def test_invalid_requests_are_refused(engine: Engine, request_: CompletionRequest) -> None:
    (reply,) = run(engine, msgspec.structs.replace(request_, id=next(ids)))
    assert reply.failure.status == 400


def test_a_character_of_several_tokens_is_reported_once_complete(
    engine: Engine, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This vocabulary has a token for each byte of a Chinese character; the logits force 你好."""
    script = engine.tokenize("你好", add_special=False)[1:]  # without the leading space
    context = engine._context
    assert context is not None and len(script) == 6

    def forced() -> np.ndarray:
        rows = np.zeros((1, 512), np.float32)
        rows[0, script.pop(0)] = 9.0
        return rows

    monkeypatch.setattr(context, "logits", forced)
    (reply,) = run(engine, ask(num_predict=6, logprobs=0))
    assert reply.text == "你好"
    assert [out.text for out in reply.texts] == ["", "", "你", "", "", "好"]
    assert [prob.token for prob in reply.logprobs] == [bytes([byte]) for byte in "你好".encode()]


@pytest.mark.parametrize("text", ["Once upon a time", "<s>Once", " two  spaces", "你好\n", ""])
def test_tokens_and_back(engine: Engine, text: str) -> None:
    assert engine.detokenize(engine.tokenize(text, add_special=False)) == text


def test_invalid_tokens_give_no_text(engine: Engine) -> None:
    assert engine.detokenize([-1, 99999]) == ""


# Log probabilities


def test_logprobs_are_the_probabilities_of_the_model(engine: Engine) -> None:
    (reply,) = run(engine, ask(num_predict=12, logprobs=3))
    assert len(reply.logprobs) == 12
    assert b"".join(prob.token for prob in reply.logprobs).decode() == reply.text
    for prob in reply.logprobs:
        assert len(prob.top) == 3
        assert (prob.top[0].token, prob.top[0].logprob) == (prob.token, prob.logprob), (
            "greedy decoding takes the most likely token"
        )
        assert -20 < prob.top[2].logprob <= prob.top[1].logprob <= prob.logprob <= 0
        assert sum(math.exp(top.logprob) for top in prob.top) <= 1.0001


def test_logprobs_without_top_tokens_and_without_logprobs(engine: Engine) -> None:
    bare, off = run(engine, ask(num_predict=4, logprobs=0), ask(num_predict=4))
    assert [prob.top for prob in bare.logprobs] == [()] * 4 and off.logprobs == []
    assert bare.text == off.text


# Loading


def test_facts(engine: Engine) -> None:
    facts = engine.facts
    assert (facts.n_vocab, facts.n_embd, facts.n_ctx_train, facts.n_ctx, facts.n_threads) == (512, 64, 512, 512, 1)
    assert (facts.bos, facts.add_bos, facts.pooling, facts.size_vram) == ("<s>", True, "none", 0)
    assert facts.size > 1_000_000 and "llama-cpp-python" in facts.build


def test_a_vocabulary_alone_can_tokenize(path: str) -> None:
    engine = Engine(EngineConfig(path=path, vocab_only=True))
    assert engine.tokenize("Once upon a time") == [1, 403, 407, 261, 378]
    assert engine.detokenize([403, 407, 261, 378]) == "Once upon a time"
    (reply,) = run(engine, ask())
    assert reply.failure.status == 400
    engine.close()


def test_more_requests_than_slots_all_finish(path: str) -> None:
    engine = Engine(EngineConfig(path=path, n_ctx=128, n_seq=2, n_threads=1))
    replies = run(engine, *(ask(f"{n} cats", num_predict=12) for n in range(9)))
    assert all(reply.done.output_tokens == 12 for reply in replies)
    engine.close()
    engine.close()
