"""Several choices, token ids as prompts, and the events and figures of detailed replies."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.service_harness import PLAIN, THINKS, ServiceHarness, collect, done

from ollama_nb.api.events import Delta, Done, Event, PromptRead, Rendered
from ollama_nb.api.messages import Message
from ollama_nb.api.requests import ChatRequest, GenerateRequest
from ollama_nb.errors import BadRequest, OllamaError

HI = (Message("user", "hi"),)


def texts(events: list[Event], count: int) -> list[str]:
    return [
        "".join(event.content for event in events if isinstance(event, Delta) and event.choice == index)
        for index in range(count)
    ]


def ends(events: list[Event]) -> list[Done]:
    return [event for event in events if isinstance(event, Done)]


def chat(harness: ServiceHarness, **fields: Any) -> list[Event]:
    return asyncio.run(collect(harness.service.chat(ChatRequest(model="m", messages=HI, **fields))))


@pytest.fixture
def harness(harness: ServiceHarness) -> ServiceHarness:
    harness.make("m", template=PLAIN)
    return harness


def test_each_choice_has_its_own_seed_and_end(harness: ServiceHarness) -> None:
    events = chat(harness, n=3, options={"seed": 5})
    assert [asked["options"].seed for asked in harness.asks] == [5, 6, 7]
    assert len({asked["group"] for asked in harness.asks} - {0}) == 1
    assert texts(events, 3) == ["Hello there"] * 3
    assert sorted(end.choice for end in ends(events)) == [0, 1, 2]
    *others, last = ends(events)
    assert events[-1] is last
    assert [end.stats for end in others] == [None, None]
    assert last.stats is not None
    assert (last.stats.prompt_tokens, last.stats.output_tokens) == (3, 6)


def test_one_reply_is_in_no_group(harness: ServiceHarness) -> None:
    assert [event.choice for event in ends(chat(harness))] == [0]
    assert harness.asks[0]["group"] == 0


@pytest.mark.parametrize("n", [0, 17, -1])
def test_too_many_or_too_few_choices_are_refused(harness: ServiceHarness, n: int) -> None:
    with pytest.raises(BadRequest, match="n must be between 1 and 16"):
        chat(harness, n=n)
    assert not harness.pool.acquired


def test_choices_with_thinking_and_a_format(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ('{"a"', ": 1}") if format else ("why</think>", "so"))
    harness.make("m", template=THINKS)
    events = chat(harness, n=2, format="json")
    assert texts(events, 2) == ['{"a": 1}'] * 2
    assert len(harness.asks) == 4
    assert [asked["group"] == 0 for asked in sorted(harness.asks, key=lambda asked: bool(asked["format"]))] == [
        False, False, True, True,
    ]  # fmt: skip


def test_an_error_of_one_choice_ends_all(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)

    def script(prompt: str, format: str) -> Any:
        return ("a", OllamaError("broken")) if len(harness.asks) == 2 else ("a", asyncio.Event())

    harness.pool.runner.script = script
    harness.make("m", template=PLAIN)
    with pytest.raises(OllamaError, match="broken"):
        chat(harness, n=3)
    assert harness.pool.runner.cancelled == 3
    assert harness.pool.leases == 0


@in_loop
async def test_cancelling_ends_every_choice(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ("a", asyncio.Event()))
    harness.make("m", template=PLAIN)
    request = ChatRequest(model="m", messages=HI, n=3, request_id="r")
    events = []
    async with aclosing(harness.service.chat(request)) as stream:
        async for event in stream:
            events.append(event)
            if len(events) == 3:
                assert harness.service.requests.cancel("r")
    assert [end.reason for end in ends(events)] == ["cancelled"] * 3
    assert texts(events, 3) == ["a"] * 3
    last = ends(events)[-1].stats
    assert last is not None and last.output_tokens == 3
    assert harness.pool.runner.cancelled == 3
    assert harness.pool.leases == 0


@in_loop
async def test_closing_ends_every_choice(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ("a", asyncio.Event()))
    harness.make("m", template=PLAIN)
    stream = harness.service.chat(ChatRequest(model="m", messages=HI, n=3))
    await anext(stream)
    await stream.aclose()
    assert harness.pool.runner.cancelled == len(harness.asks) == 3
    assert harness.pool.leases == 0


@in_loop
async def test_a_request_that_is_cancelled_while_loading_ends_every_choice(harness: ServiceHarness) -> None:
    harness.pool.gate.clear()
    request = ChatRequest(model="m", messages=HI, n=2, request_id="r")
    task = asyncio.ensure_future(collect(harness.service.chat(request)))
    await harness.pool.asked.wait()
    harness.service.requests.cancel("r")
    events = await task
    assert [(end.choice, end.reason) for end in ends(events)] == [(0, "cancelled"), (1, "cancelled")]


def test_warnings_of_all_choices_come_once(harness: ServiceHarness) -> None:
    *others, last = ends(chat(harness, n=3, options={"tempreture": 1}))
    assert [end.warnings for end in others] == [(), ()]
    assert last.warnings == ('unknown option "tempreture", did you mean "temperature"?',)


# PromptRead


@pytest.mark.parametrize("n", [1, 3])
def test_a_detailed_reply_begins_with_its_prompt(harness: ServiceHarness, n: int) -> None:
    events = chat(harness, n=n, detailed=True)
    assert isinstance(events[0], PromptRead)
    assert events[0].prompt_tokens == 3
    assert sum(isinstance(event, PromptRead) for event in events) == 1
    assert not any(isinstance(event, PromptRead) for event in chat(harness, n=n))


def test_a_reply_without_text_reports_its_prompt_too(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ())
    harness.make("m", template=PLAIN)
    assert [type(event) for event in chat(harness, detailed=True)] == [PromptRead, Done]


# Token ids


def generate(harness: ServiceHarness, **fields: Any) -> list[Event]:
    return asyncio.run(collect(harness.service.generate(GenerateRequest(model="m", **fields))))


def test_token_ids_are_the_whole_prompt(harness: ServiceHarness) -> None:
    events = generate(harness, tokens=(1, 5, 99), run_record=True, user="ann")
    (asked,) = harness.asks
    assert (asked["prompt"], asked["tokens"]) == ("", (1, 5, 99))
    assert not harness.renderer.jobs
    end = done(events)
    assert end.stats is not None and end.stats.prompt_tokens == 3
    assert end.context == (7, 8, 9)
    assert end.run is not None
    assert end.run["prompt_hash"] == f"sha256:{hashlib.sha256(b'[1, 5, 99]').hexdigest()}"
    assert end.run["user"] == "ann"


@pytest.mark.parametrize("token", [100, -1])
def test_a_token_outside_the_vocabulary_is_named_with_the_range(harness: ServiceHarness, token: int) -> None:
    with pytest.raises(BadRequest, match=f'{token} is not a token of "m": its tokens are 0 to 99'):
        generate(harness, tokens=(1, token))
    assert harness.pool.leases == 0


def test_token_ids_come_alone(harness: ServiceHarness) -> None:
    with pytest.raises(BadRequest, match="cannot be combined with prompt, system"):
        generate(harness, tokens=(1,), prompt="hi", system="be brief")


def test_the_text_of_token_ids_can_be_shown(harness: ServiceHarness) -> None:
    assert generate(harness, tokens=(1, 2), render_only=True) == [Rendered("<1><2>", 0)]


def test_without_a_user_the_record_has_none(harness: ServiceHarness) -> None:
    end = done(chat(harness, run_record=True))
    assert end.run is not None and "user" not in end.run
