"""A budget of thinking: at its end the thinking is closed, and the answer or a tool call follows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.service_harness import PLAIN, THINKS, WEATHER, ServiceHarness, calls, collect, content, done, thinking

from ollama_nb.api.events import Event
from ollama_nb.api.messages import Message
from ollama_nb.api.requests import ChatRequest
from ollama_nb.errors import BadRequest

HI = (Message("user", "hi"),)
PROMPT = "<user> hi <think>"
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}'
WITH_TOOLS = THINKS + "{{ if .Tools }}{{ range .Messages }}{{ if .ToolCalls }}<tool_call>{{ end }}{{ end }}{{ end }}"


def chat(folder: Path, runs: list[tuple[str, ...]], **fields: Any) -> tuple[ServiceHarness, list[Event]]:
    """Chat with a model of which each run produces the next of the given texts."""
    left = iter(runs)
    harness = ServiceHarness(folder, lambda prompt, format: next(left))
    harness.make("m", template=fields.pop("template", THINKS), parser=fields.pop("parser", ""))
    request = ChatRequest(model="m", messages=HI, **fields)
    return harness, asyncio.run(collect(harness.service.chat(request)))


def prompts(harness: ServiceHarness) -> list[str]:
    return [asked["prompt"] for asked in harness.asks]


def test_thinking_ends_after_its_budget(tmp_path: Path) -> None:
    harness, events = chat(tmp_path, [("a", "b", "c", "d"), ("so", " it", " is")], think_budget=3)
    assert prompts(harness) == [PROMPT, PROMPT + "abc\n</think>\n\n"]
    assert (thinking(events), content(events)) == ("abc", "so it is")
    stats = done(events).stats
    assert stats is not None
    assert (stats.output_tokens, stats.reasoning_tokens, stats.prompt_tokens) == (6, 3, len(PROMPT.split()))
    assert harness.pool.runner.cancelled == 1, "the runner stops working on the rest of the thinking"


def test_thinking_below_the_budget_is_not_touched(tmp_path: Path) -> None:
    harness, events = chat(tmp_path, [("a", "b", "</think>", "so")], think_budget=3)
    assert prompts(harness) == [PROMPT]
    assert (thinking(events), content(events)) == ("ab", "so")
    stats = done(events).stats
    assert stats is not None and (stats.output_tokens, stats.reasoning_tokens) == (4, 2)


def test_a_closing_tag_that_has_begun_is_completed(tmp_path: Path) -> None:
    harness, events = chat(tmp_path, [("a", "</th", "ink>", "x"), ("so",)], think_budget=2)
    assert prompts(harness)[1] == PROMPT + "a</think>\n\n"
    assert (thinking(events), content(events)) == ("a", "so")


def test_no_budget_at_all_switches_thinking_off(tmp_path: Path) -> None:
    harness, events = chat(tmp_path, [("so",)], think=True, think_budget=0)
    assert prompts(harness) == ["<user> hi "]
    assert content(events) == "so"


def test_a_model_that_does_not_think_warns(tmp_path: Path) -> None:
    _, events = chat(tmp_path, [("so",)], think_budget=5, template=PLAIN)
    assert done(events).warnings == ("think_budget has no effect: this model does not think",)
    with pytest.raises(BadRequest, match="think_budget"):
        chat(tmp_path / "strict", [("so",)], think_budget=5, template=PLAIN, strict=True)


def test_a_negative_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="think_budget must be 0 or more"):
        chat(tmp_path, [], think_budget=-1)


def test_a_constrained_answer_follows(tmp_path: Path) -> None:
    harness, events = chat(tmp_path, [("a", "b", "c"), ('{"a"', ": 1}")], think_budget=2, format="json")
    assert prompts(harness) == [PROMPT, PROMPT + "ab\n</think>\n\n"]
    assert [asked["format"] for asked in harness.asks] == ["", "json"]
    assert (thinking(events), json.loads(content(events))) == ("ab", {"a": 1})


def test_a_tool_call_can_follow(tmp_path: Path) -> None:
    runs = [("a", "b", "c"), (CALL,)]
    _, events = chat(tmp_path, runs, think_budget=2, tools=(WEATHER,), template=WITH_TOOLS)
    assert (thinking(events), calls(events), content(events)) == ("ab", ["weather"], "")


def test_the_limit_of_the_reply_includes_the_thinking(tmp_path: Path) -> None:
    harness, _ = chat(tmp_path, [("a", "b", "c"), ("so",)], think_budget=2, options={"num_predict": 5})
    assert [asked["options"].num_predict for asked in harness.asks] == [5, 3]
    harness, events = chat(tmp_path / "2", [("a", "b", "c")], think_budget=2, options={"num_predict": 2})
    assert len(harness.asks) == 1
    assert (thinking(events), content(events), done(events).reason) == ("ab", "", "length")


def test_a_family_that_repeats_the_opening_tag(tmp_path: Path) -> None:
    runs = [("<think>", "a", " b", " c"), ("so",)]
    _, events = chat(tmp_path, runs, parser="qwen3-thinking", think_budget=2)
    assert (thinking(events), content(events)) == ("a b", "so")
    stats = done(events).stats
    assert stats is not None and (stats.output_tokens, stats.reasoning_tokens) == (4, 2)


HARMONY_THOUGHT = ("<|channel|>", "analysis", "<|message|>", "a", "b", "c")


def test_harmony_without_tools_goes_to_its_final_channel(tmp_path: Path) -> None:
    harness, events = chat(tmp_path, [HARMONY_THOUGHT, ("so",)], parser="harmony", think_budget=2)
    ending = "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert prompts(harness)[1] == prompts(harness)[0] + "<|channel|>analysis<|message|>ab" + ending
    assert (thinking(events), content(events)) == ("ab", "so")
    stats = done(events).stats
    assert stats is not None and (stats.output_tokens, stats.reasoning_tokens) == (6, 2)


def test_harmony_may_call_a_tool_but_not_think_again(tmp_path: Path) -> None:
    call = ('<|channel|>commentary to=functions.weather<|message|>{"city":', '"Oslo"}')
    _, events = chat(tmp_path, [HARMONY_THOUGHT, call], parser="harmony", think_budget=2, tools=(WEATHER,))
    assert (thinking(events), calls(events)) == ("ab", ["weather"])
    harness, events = chat(
        tmp_path / "2", [HARMONY_THOUGHT, HARMONY_THOUGHT, ("so",)], parser="harmony", think_budget=2, tools=(WEATHER,)
    )
    second, third = prompts(harness)[1:]
    assert second.endswith("ab<|end|><|start|>assistant")
    assert third.endswith("analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>")
    assert (thinking(events), content(events)) == ("ab", "so")
