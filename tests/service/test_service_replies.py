"""Structured answers of thinking models: free thinking, a constrained answer, one set of figures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.service_harness import THINKS, WEATHER, ServiceHarness, calls, collect, content, done, thinking

from ollama_nb.api.messages import Message
from ollama_nb.api.requests import ChatRequest, GenerateRequest
from ollama_nb.runner import wire

HI = (Message("user", "hi"),)
PROMPT = "<user> hi <think>"
TWO_TURNS = THINKS + "{{ if .Tools }}{{ range .Messages }}{{ if .ToolCalls }}<tool_call>{{ end }}{{ end }}{{ end }}"


def scripted(*first: str) -> Any:
    return lambda prompt, format: ('{"a"', ": 1}") if format else first


@pytest.mark.parametrize(
    ("first", "thoughts", "second_prompt"),
    [
        (("why", "</think>", "\n\n", "so", " and more"), "why", PROMPT + "why</think>\n\n"),
        (("why</think>so",), "why", PROMPT + "why</think>\n\n"),
        (("why</think> \n", "so"), "why", PROMPT + "why</think> \n"),
        # It ended without an answer: a second run produces one.
        (("why",), "why", PROMPT + "why\n</think>\n\n"),
        (("why</think>",), "why", PROMPT + "why</think>\n\n"),
        ((), "", PROMPT + "\n</think>\n\n"),
    ],
)
def test_the_format_constrains_the_answer_only(
    tmp_path: Path, first: tuple[str, ...], thoughts: str, second_prompt: str
) -> None:
    harness = ServiceHarness(tmp_path, scripted(*first))
    harness.make("m", template=THINKS)
    events = asyncio.run(collect(harness.service.chat(ChatRequest(model="m", messages=HI, format="json"))))
    assert (thinking(events), content(events)) == (thoughts, '{"a": 1}')
    assert [asked["format"] for asked in harness.asks] == ["", "json"]
    assert [asked["prompt"] for asked in harness.asks] == [PROMPT, second_prompt]
    stats = done(events).stats
    assert stats is not None
    assert stats.prompt_tokens == len(PROMPT.split())
    assert stats.output_tokens >= 2
    assert done(events).reason == "stop"


def test_thinking_that_is_interrupted_keeps_its_figures(tmp_path: Path) -> None:
    """The prompt was truncated, and the first run is cancelled before its Finished arrives."""
    first = wire.TextOutput(1, "why", (), 2, 1, 3)

    def script(prompt: str, format: str) -> Any:
        second = wire.TextOutput(1, "</think>so", drafted=5, accepted=4)
        return ('{"a"', ": 1}") if format else (first, second, " and more")

    harness = ServiceHarness(tmp_path, script)
    harness.make("m", template=THINKS)
    events = asyncio.run(collect(harness.service.chat(ChatRequest(model="m", messages=HI, format="json"))))
    stats = done(events).stats
    assert stats is not None and content(events) == '{"a": 1}'
    assert (stats.prompt_tokens, stats.cached_tokens, stats.prompt_tokens_dropped) == (2, 1, 3)
    assert (stats.drafted_tokens, stats.accepted_tokens) == (5, 4)
    assert harness.pool.runner.counted == []


def test_a_model_that_does_not_think_starts_again(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, scripted("Sure: ", "so"))
    harness.make("m", template=THINKS.replace("{{ if and .IsThinkSet .Think }}<think>{{ end }}", ""))
    events = asyncio.run(collect(harness.service.chat(ChatRequest(model="m", messages=HI, format={"type": "object"}))))
    assert (thinking(events), content(events)) == ("", '{"a": 1}')
    assert [asked["format"] for asked in harness.asks] == ["", '{"type":"object"}']
    assert harness.asks[0]["prompt"] == harness.asks[1]["prompt"]


@pytest.mark.parametrize("fields", [{"think": False}, {}])
def test_one_run_without_thinking(tmp_path: Path, fields: dict[str, Any]) -> None:
    harness = ServiceHarness(tmp_path, scripted("never"))
    harness.make("m", template=THINKS if fields else "{{ .Prompt }}")
    asyncio.run(collect(harness.service.chat(ChatRequest(model="m", messages=HI, format="json", **fields))))
    assert [asked["format"] for asked in harness.asks] == ["json"]


def test_generate_does_the_same(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, scripted("why</think>", "so"))
    harness.make("m", template=THINKS)
    events = asyncio.run(collect(harness.service.generate(GenerateRequest(model="m", prompt="hi", format="json"))))
    assert (thinking(events), content(events)) == ("why", '{"a": 1}')
    assert done(events).context == (7, 8, 9)


def test_both_runs_share_one_token_budget(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, scripted("a", "b", "</think>", "so"))
    harness.make("m", template=THINKS)
    request = ChatRequest(model="m", messages=HI, format="json", options={"num_predict": 10})
    asyncio.run(collect(harness.service.chat(request)))
    assert [asked["options"].num_predict for asked in harness.asks] == [10, 6]


def test_the_length_limit_is_reached_while_thinking(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, scripted("why", "<length>"))
    harness.make("m", template=THINKS)
    events = asyncio.run(collect(harness.service.chat(ChatRequest(model="m", messages=HI, format="json"))))
    assert (thinking(events), content(events), done(events).reason) == ("why", "", "length")
    assert len(harness.asks) == 1


def test_a_tool_call_is_an_answer(tmp_path: Path) -> None:
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}'
    harness = ServiceHarness(tmp_path, scripted("why</think>", call))
    harness.make("m", template=TWO_TURNS)
    request = ChatRequest(model="m", messages=HI, format="json", tools=(WEATHER,))
    events = asyncio.run(collect(harness.service.chat(request)))
    assert calls(events) == ["weather"]
    assert len(harness.asks) == 1


@in_loop
async def test_cancelled_in_either_run(tmp_path: Path) -> None:
    for at_format, seen in (("", ("why", "")), ("json", ("why", '{"a"'))):

        def script(prompt: str, format: str, at_format: str = at_format) -> Any:
            pieces = ('{"a"',) if format else ("why",)
            return (*pieces, asyncio.Event()) if format == at_format else (*pieces, "</think>", "so")

        harness = ServiceHarness(tmp_path, script)
        harness.make("m", template=THINKS)
        chat = harness.service.chat(ChatRequest(model="m", messages=HI, format="json", request_id="r"))
        task = asyncio.ensure_future(collect(chat))
        await harness.pool.runner.waiting.wait()
        harness.service.requests.cancel("r")
        events = await task
        assert (thinking(events), content(events)) == seen
        assert done(events).reason == "cancelled"
        assert len(harness.asks) == (2 if at_format else 1)
