"""The order of messages, what may be dropped, and the search for the longest prompt that fits."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_pool import FakeLease
from support.kitchen import Kitchen

from ollama_nb.api.chat import GenerateRequest, PromptJob
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.models import Layer, Manifest, Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.service.conversation import chat_messages, cuts, generate_messages, really_dropped
from ollama_nb.service.prompt import PROBES, Prompt, fit, spread

MODEL = Model(
    ModelName("m"), "d", Manifest(Layer("", Digest("0" * 64), 0), ()), ModelConfig(), 0.0, 0,
    system="be kind", messages=(Message("user", "q0"), Message("assistant", "a0")),
)  # fmt: skip
ASK, RULE = Message("user", "q"), Message("system", "be quick")


def test_stored_messages_come_first_and_the_first_one_decides_about_system() -> None:
    assert [m.content for m in chat_messages(MODEL, [ASK])] == ["be kind", "q0", "a0", "q"]
    assert [m.content for m in chat_messages(MODEL, [RULE, ASK])] == ["q0", "a0", "be quick", "q"]
    assert [m.content for m in chat_messages(MODEL, [ASK, RULE])] == ["be kind", "q0", "a0", "q", "be quick"]


def test_generate_builds_a_conversation() -> None:
    def contents(**fields: Any) -> list[str]:
        return [m.content for m in generate_messages(MODEL, GenerateRequest(model="m", prompt="p", **fields))]

    assert contents() == ["be kind", "q0", "a0", "p"]
    assert contents(system="hush") == ["hush", "q0", "a0", "p"]
    assert contents(context=()) == ["be kind", "p"]


def test_old_thinking_goes_for_the_families_that_want_it() -> None:
    talk = [ASK, Message("assistant", "<think>a\nb</think>\n\nyes"), ASK, Message("assistant", "<think>c</think>no")]
    old = replace(MODEL, config=ModelConfig(model_family="qwen3"), messages=(), system="")
    assert [m.content for m in chat_messages(old, talk)] == ["q", "yes", "q", "<think>c</think>no"]
    assert "<think>a" in chat_messages(MODEL, talk)[-3].content


def test_a_tool_result_never_outlives_its_call() -> None:
    call = Message("assistant", tool_calls=(ToolCall("f", {}),))
    result = Message("tool", "42")
    assert cuts([ASK, call, result, ASK, ASK]) == [1, 3, 4]
    assert cuts([ASK, call, result, result]) == [1]
    assert cuts([ASK]) == []
    assert really_dropped([RULE, ASK, RULE, ASK], 3) == 1


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 5), (0, 7), (0, 100), (17, 1000)])
def test_probes_are_spread_up_to_the_end(low: int, high: int) -> None:
    places = spread(low, high)
    assert places == sorted(set(places))
    assert len(places) == min(PROBES, high - low + 1)
    assert places[0] >= low
    assert places[-1] == high


roles = st.sampled_from(["user", "assistant", "tool", "system"])
talks = st.lists(st.tuples(roles, st.integers(0, 30)), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(talks, st.integers(1, 400))
def test_the_fewest_messages_are_dropped(talk: list[tuple[str, int]], limit: int) -> None:
    kitchen = Kitchen(Path("/nowhere"))
    messages = tuple(Message(role, "w " * words) for role, words in talk)
    template = "{{ range .Messages }}{{ .Role }} {{ .Content }} {{ end }}"
    job = PromptJob(path="go", template=template, messages=messages)

    def tokens(cut: int) -> int:
        return len(asyncio.run(kitchen.renderer.render(replace(job, drops=(cut,))))[0].split())

    async def run() -> Prompt:
        return await fit(kitchen.service._rooms, FakeLease(kitchen.pool, limit + 1), job, limit)  # type: ignore[arg-type]

    allowed = [0, *cuts(messages)]
    expected = next((cut for cut in allowed if tokens(cut) <= limit), allowed[-1])
    kitchen.renderer.jobs.clear()
    prompt = asyncio.run(run())
    trips = len(kitchen.renderer.jobs)
    assert prompt.messages_dropped == really_dropped(messages, expected)
    assert len(prompt.text.split()) == tokens(expected)
    assert trips <= 2 + math.ceil(math.log(len(allowed), PROBES))


def test_a_thousand_messages_need_few_round_trips() -> None:
    kitchen = Kitchen(Path("/nowhere"))
    messages = tuple(Message("user" if at % 2 else "assistant", f"word{at} " * 10) for at in range(1000))
    job = PromptJob(path="jinja", template="{% for m in messages %}{{ m.content }}{% endfor %}", messages=messages)

    async def run() -> Prompt:
        return await fit(kitchen.service._rooms, FakeLease(kitchen.pool, 4096), job, 4095)  # type: ignore[arg-type]

    prompt = asyncio.run(run())
    assert prompt.messages_dropped == 1000 - 409
    assert prompt.tokens == 4090
    assert prompt.tokens_dropped == 10_000 - 4090
    assert len(kitchen.renderer.jobs) <= 5
    assert len(kitchen.pool.runner.counted) <= 5
