"""Sampling parameters, penalties, logit bias, and draws that equal those of llama.cpp's chain on the whole row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.api.options import Options
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import SamplerChain
from ollama_nb.engine.messages import CompletionRequest, Failed, Finished, TextOutput
from ollama_nb.engine.sampler import Sampler, SamplingParameters
from ollama_nb.errors import BadRequest, OllamaError

WORDS = 5000


def sampler(**options: float) -> Sampler:
    return Sampler(SamplingParameters.from_options(replace(Options(seed=7), **options), 128))


def row(seed: int = 0, spread: float = 3.0, size: int = WORDS) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def test_temperature_zero_is_the_most_likely_token() -> None:
    logits = row()
    assert sampler(temperature=0.0).sample(logits, []) == int(logits.argmax())
    assert sampler(temperature=-1.0).sample(logits, []) == int(logits.argmax())


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0], ids=lambda spread: f"spread {spread}")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 0},
        {"top_k": -1, "top_p": 1.0},
        {"top_k": 0, "top_p": 0.5, "min_p": 0.1},
        {"top_k": 5, "typical_p": 0.7},
        {"top_k": 1_000_000, "typical_p": 0.9},
        {"temperature": 5.0, "top_k": 300, "top_p": 0.99},
        {"temperature": 0.01},
    ],
    ids=str,
)
def test_draws_equal_those_of_the_native_chain(options: dict[str, float], spread: float) -> None:
    """Sampling from a few candidates loses nothing: the same seeds give the same tokens."""
    ours, parameters = sampler(**options), SamplingParameters.from_options(replace(Options(seed=7), **options), 128)
    plain = SamplerChain(parameters.steps)
    everything = np.arange(WORDS)
    for seed in range(40):
        logits = row(seed, spread)
        assert ours.sample(logits.copy(), []) == plain.draw(everything, logits)


def test_a_seed_is_reproducible_and_minus_one_is_random() -> None:
    logits = row(spread=1.0)
    draws = [[maker.sample(logits.copy(), []) for _ in range(20)] for maker in (sampler(), sampler(), sampler(seed=8))]
    assert draws[0] == draws[1] != draws[2]
    assert len({SamplingParameters.from_options(Options(seed=-1), 128).seed for _ in range(8)}) > 1
    assert SamplingParameters.from_options(Options(seed=0), 128).seed == 0


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(st.integers(0, 30), max_size=100),
    last_n=st.integers(-1, 80),
    repeat=st.floats(0.5, 2.0),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
)
def test_penalties_follow_their_formula(
    history: list[int], last_n: int, repeat: float, presence: float, frequency: float
) -> None:
    logits = row(size=31)
    expected = logits.astype(np.float64)
    window = history if last_n < 0 else history[len(history) - min(last_n, len(history)) :]
    for token in set(window):
        expected[token] = expected[token] * repeat if expected[token] <= 0 else expected[token] / repeat
        expected[token] -= window.count(token) * frequency + presence
    options = {"repeat_penalty": repeat, "presence_penalty": presence, "frequency_penalty": frequency}
    sampler(repeat_last_n=last_n, **options).penalise(logits, history)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_greedy_decoding_applies_penalties() -> None:
    logits = row()
    best = int(logits.argmax())
    assert sampler(temperature=0.0, presence_penalty=50.0).sample(logits, [best]) != best


@pytest.mark.parametrize("name", ["temperature", "top_p", "repeat_penalty", "frequency_penalty", "min_p"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(BadRequest, match=name):
        SamplingParameters.from_options(replace(Options(), **{name: value}), 128)


@settings(max_examples=100, deadline=None)
@given(
    numbers=st.lists(st.floats(-1e38, 1e38), min_size=6, max_size=6),
    whole=st.lists(st.integers(-(1 << 62), 1 << 62), min_size=3, max_size=3),
)
def test_any_finite_options_give_some_token(numbers: list[float], whole: list[int]) -> None:
    names = ("temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty")
    options = dict(zip(names, numbers, strict=True)) | dict(zip(("top_k", "repeat_last_n", "seed"), whole, strict=True))
    assert 0 <= sampler(**options).sample(row(size=300), [1, 2, 3]) < 300


def test_nan_from_a_damaged_model_is_an_error() -> None:
    logits = row()
    logits[17] = math.nan
    for temperature in (0.0, 0.8):
        with pytest.raises(OllamaError, match="NaN"):
            sampler(temperature=temperature).sample(logits.copy(), [])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 0}, {}], ids=str)
def test_draws_from_the_tokens_that_a_constraint_allows(options: dict[str, float]) -> None:
    logits, allowed = row(), np.array([3, 4000])
    chosen = {sampler(seed=seed, **options).sample_from(logits, allowed) for seed in range(30)}
    assert chosen <= {3, 4000}
    logits[[i for i in range(WORDS) if i not in allowed]] = -math.inf
    assert {sampler(seed=seed, **options).draw(logits.copy()) for seed in range(30)} == chosen


# Logit bias


def reply(engine: Engine, bias: dict[str, Any], **fields: Any) -> str:
    options, _ = Options.layered({"logit_bias": bias, "temperature": 0, "num_predict": 12, **fields})
    engine.submit(CompletionRequest(id=1, prompt="Once upon a time", options=options))
    outs = [out for _ in range(100) if engine.busy for out in engine.step()]
    if isinstance(outs[-1], Failed):
        raise BadRequest(outs[-1].message, status=outs[-1].status)
    assert isinstance(outs[-1], Finished)
    return "".join(out.text for out in outs if isinstance(out, TextOutput))


def test_logit_bias_forbids_and_forces_tokens(engine: Engine) -> None:
    plain = reply(engine, {})
    assert "," in plain
    assert "," not in reply(engine, {",": -100})
    (comma,) = {*engine.tokenize(",", add_special=False)} - {*engine.tokenize(" ", add_special=False)}
    assert "," not in reply(engine, {str(comma): -1e9})
    assert reply(engine, {str(comma): 1e9}, num_predict=5) == "," * 5
    assert reply(engine, {str(comma): 1e9}, num_predict=5, temperature=2.0) == "," * 5
    assert reply(engine, {str(comma): 0.0}) == reply(engine, {}) == plain


@pytest.mark.parametrize(
    ("bias", "reason"),
    [
        ([1], "must be an object"),
        ({"1": "x"}, "must be of type float32"),
        ({"1": True}, "must be of type float32"),
        ({"1": float("nan")}, "must be a finite number"),
        ({str(n): 1 for n in range(1025)}, "1024 entries at most"),
        ({"512": 1}, "token 512 does not exist, this model has 512 tokens"),
        ({"9" * 5000: 1}, "does not exist"),
    ],
)
def test_an_invalid_logit_bias_is_refused(engine: Engine, bias: Any, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason) as caught:
        reply(engine, bias)
    assert caught.value.status == 400


def test_a_misspelt_logit_bias_is_reported() -> None:
    assert Options.layered({"logitbias": {}})[1] == ('unknown option "logitbias", did you mean "logit_bias"?',)
