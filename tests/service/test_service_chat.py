"""Chat: the order of checks, the request to the runner, the events, and how a reply ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.service_harness import (
    BAD_NAME,
    PLAIN,
    THINKS,
    TOOLS,
    WEATHER,
    ServiceHarness,
    calls,
    collect,
    content,
    done,
    thinking,
)

from ollama_nb.api.events import Delta, Done, Event, Rendered
from ollama_nb.api.messages import Message
from ollama_nb.api.models import GGUF
from ollama_nb.api.requests import ChatRequest
from ollama_nb.errors import BadRequest, Busy, ContextOverflow, OllamaError, RunnerCrashed
from ollama_nb.runner.wire import TokenProb, TopToken

HI = (Message("user", "hi"),)


async def ask(
    harness: ServiceHarness, model: str = "m", messages: tuple[Message, ...] = HI, **fields: Any
) -> list[Event]:
    return await collect(harness.service.chat(ChatRequest(model=model, messages=messages, **fields)))


@in_loop
async def test_a_reply_with_its_figures(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN, system="be kind", parameters={"temperature": 0.5, "num_ctx": 100})
    events = await ask(harness, options={"temperature": 0, "sto": 1})
    assert content(events) == "Hello there"
    end = done(events)
    assert end.reason == "stop"
    assert end.stats is not None
    assert (end.stats.prompt_tokens, end.stats.output_tokens, end.stats.cached_tokens) == (6, 2, 1)
    assert (end.stats.context_length, end.stats.messages_dropped) == (100, 0)
    assert 0 < end.stats.load_seconds <= end.stats.total_seconds
    assert end.warnings == ('unknown option "sto", did you mean "stop"?',)
    assert end.context is None
    asked = harness.asks[0]
    assert asked["prompt"] == "<system> be kind <user> hi <assistant>"
    assert (asked["options"].temperature, asked["num_ctx"]) == (0.0, 100)
    assert (asked["format"], asked["logprobs"], asked["shift"], asked["truncate"]) == ("", -1, True, True)
    assert harness.pool.leases == 0
    assert harness.service.requests.queue() == []


USUAL = (
    '{{ range .Messages }}{{ if or (eq .Role "user") (eq .Role "tool") }}{{ .Role }} {{ .Content }}{{ end }}{{ end }}'
)
LEFT_OUT = "messages[1] was left out: the template of this model does not support the role "


@pytest.mark.parametrize(
    ("template", "role", "warning"),
    [
        (USUAL, "usr", f'{LEFT_OUT}"usr", did you mean "user"?'),
        (USUAL, "", f'{LEFT_OUT}""'),
        (USUAL, "tool", ""),
        (USUAL, "system", ""),  # many templates have no system message
        (PLAIN, "developer", ""),
    ],
)
@in_loop
async def test_a_role_that_the_template_omits_is_reported(
    tmp_path: Path, template: str, role: str, warning: str
) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=template)
    messages = (*HI, Message(role, "be short"), *HI)
    assert done(await ask(harness, messages=messages)).warnings == ((warning,) if warning else ())
    if not warning:
        assert await ask(harness, messages=messages, strict=True)
        return
    assert "be short" not in harness.asks[0]["prompt"]
    with pytest.raises(BadRequest) as caught:
        await ask(harness, messages=messages, strict=True)
    assert caught.value.message == warning
    assert harness.pool.leases == 0


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "", "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ({"model": ""}, 400, "model is required"),
        ({"model": "a b"}, 400, BAD_NAME),
        ({"model": "nope"}, 404, "model 'nope' not found"),
        ({"model": "m:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
        ({"model": "bert", "think": True}, 400, '"bert" does not support thinking'),
        ({"model": "bert"}, 400, '"bert" does not support chat'),
        ({"tools": (WEATHER,)}, 400, "registry.ollama.ai/library/m:latest does not support tools"),
        ({"think": "low"}, 400, '"m" does not support thinking'),
        ({"options": {"top_k": "9"}}, 400, 'option "top_k" must be of type integer'),
        ({"format": "xml"}, 400, 'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object'),
        ({"format": 7}, 400, 'invalid format: "7"; expected "json" or a valid JSON Schema object'),
        ({"messages": (Message("user", "see", images=(b"x",)),)}, 400, '"m" does not support vision: send the'),
    ],
)
def test_errors_come_before_anything_is_loaded(
    tmp_path: Path, fields: dict[str, Any], status: int, message: str
) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    harness.make("bert", "all-MiniLM-L6-v2-q8_0.gguf")
    with pytest.raises(OllamaError) as caught:
        asyncio.run(ask(harness, **fields))
    assert (caught.value.status, caught.value.message[: len(message)]) == (status, message)
    assert harness.pool.acquired == []


@in_loop
async def test_load_and_unload(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    assert await ask(harness, messages=(), keep_alive=60.0) == [Done("load")]
    assert harness.pool.acquired[0][2] == 60.0
    assert await ask(harness, messages=(), keep_alive=0.0) == [Done("unload")]
    assert harness.pool.unloaded == ["m:latest"]
    assert harness.asks == []
    with pytest.raises(BadRequest):
        await ask(harness, messages=(), options={"top_k": "x"})


@pytest.mark.parametrize(
    ("think", "prompt_end", "reply", "expected"),
    [
        (None, "<think>", ("why</th", "ink>\n\n", "so"), ("why", "so")),
        (True, "<think>", ("why</think>so",), ("why", "so")),
        ("high", "<think>", ("never closed",), ("never closed", "")),
        (False, "hi ", ("<think>a</think>b",), ("", "<think>a</think>b")),
    ],
)
def test_thinking_is_on_unless_refused(
    tmp_path: Path, think: Any, prompt_end: str, reply: tuple[str, ...], expected: tuple[str, str]
) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: reply)
    harness.make("m", template=THINKS)
    events = asyncio.run(ask(harness, think=think))
    assert (thinking(events), content(events)) == expected
    assert harness.asks[0]["prompt"].endswith(prompt_end)
    assert harness.asks[0]["preserve"] == (() if think is False else ("<think>", "</think>"))


def test_think_is_unset_for_models_without_thinking(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    asyncio.run(ask(harness))
    asyncio.run(ask(harness, think=False))
    assert [job.think for job in harness.renderer.jobs] == [None, False]


def test_tool_calls(tmp_path: Path) -> None:
    reply = ("Let me see. ", "<tool", '_call>{"name": "weather", "arguments": {"city": "Oslo"}}', "</tool_call>")
    harness = ServiceHarness(tmp_path, lambda prompt, format: reply)
    harness.make("m", template=TOOLS)
    events = asyncio.run(ask(harness, tools=(WEATHER,)))
    assert calls(events) == ["weather"]
    assert content(events).strip() == "Let me see."
    assert harness.asks[0]["preserve"] == ("<tool_call>",)
    assert "weather" in harness.asks[0]["prompt"]
    # Without tools in the request the same text is content.
    assert "<tool_call>" in content(asyncio.run(ask(harness)))


def test_a_model_without_a_template_chats_in_chatml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m")
    bare = GGUF(3, {"general.architecture": "llama"}, ())
    monkeypatch.setattr(harness.service.store, "gguf", lambda model: bare)
    asyncio.run(ask(harness))
    assert harness.asks[0]["prompt"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert harness.asks[0]["options"].stop == ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(("template", "cut"), [(PLAIN, True), ("", False)])
def test_only_prompts_of_go_templates_lose_tokens_in_the_middle(tmp_path: Path, template: str, cut: bool) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=template)
    asyncio.run(ask(harness))
    asyncio.run(ask(harness, truncate=False, shift=False))
    assert [asked["truncate"] for asked in harness.asks] == [cut, False]
    assert [asked["shift"] for asked in harness.asks] == [True, False]


def test_old_messages_are_dropped_and_reported(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    talk = tuple(Message("user" if at % 2 == 0 else "assistant", f"word{at} " * 20) for at in range(9))
    events = asyncio.run(ask(harness, messages=talk, options={"num_ctx": 50}))
    stats = done(events).stats
    assert stats is not None
    assert stats.messages_dropped == 7
    assert stats.prompt_tokens_dropped == 7 * 21
    assert "word7" in harness.asks[0]["prompt"]
    assert "word6" not in harness.asks[0]["prompt"]
    asyncio.run(ask(harness, messages=talk, options={"num_ctx": 50}, truncate=False))
    assert "word0" in harness.asks[1]["prompt"]


def test_only_whole_messages_are_dropped_on_request(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    talk = tuple(Message("user" if at % 2 == 0 else "assistant", f"word{at} " * 20) for at in range(9))
    fields: dict[str, Any] = {"options": {"num_ctx": 50}, "truncate": "messages"}
    events = asyncio.run(ask(harness, messages=talk, **fields))
    assert harness.asks[0]["truncate"] is False, "the engine must not cut the prompt"
    stats = done(events).stats
    assert stats is not None and stats.messages_dropped == 7
    system, last = Message("system", "be brief"), Message("user", "word " * 60)
    with pytest.raises(ContextOverflow, match=r"have 65 tokens, but only 49 fit into the context"):
        asyncio.run(ask(harness, messages=(system, *talk, last), **fields))
    assert len(harness.asks) == 1


def test_render_only(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    assert asyncio.run(ask(harness, render_only=True)) == [Rendered("<user> hi <assistant>", 0)]
    assert len(harness.pool.acquired) == 1
    assert harness.asks == []


def test_logprobs_are_never_lost(tmp_path: Path) -> None:
    probs = [(TokenProb(bytes([65 + at]), -0.5, (TopToken(b"x", -0.25),)),) for at in range(3)]
    harness = ServiceHarness(tmp_path, lambda prompt, format: (("<th", probs[0]), ("ink>a", probs[1]), ("b", probs[2])))
    harness.make("m", template=THINKS.replace("{{ if and .IsThinkSet .Think }}<think>{{ end }}", ""))
    events = asyncio.run(ask(harness, logprobs=True, top_logprobs=1))
    assert harness.asks[0]["logprobs"] == 1
    deltas = [event for event in events if isinstance(event, Delta)]
    told = [(delta.thinking, delta.logprobs[0].token) for delta in deltas if delta.logprobs]
    assert told == [("", b"A"), ("a", b"B"), ("b", b"C")]
    assert deltas[0].logprobs[0].top == ((b"x", -0.25),)


@in_loop
async def test_closing_the_generator_cancels(tmp_path: Path) -> None:
    forever = asyncio.Event()
    harness = ServiceHarness(tmp_path, lambda prompt, format: ("one", " two", forever))
    harness.make("m", template=PLAIN)
    async with aclosing(harness.service.chat(ChatRequest(model="m", messages=HI))) as events:
        assert await anext(events) == Delta("one")
    assert harness.pool.runner.cancelled == 1
    assert harness.pool.leases == 0
    assert harness.service.requests.queue() == []


@in_loop
async def test_a_client_that_goes_away_while_waiting_cancels(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ("one", asyncio.Event()))
    harness.make("m", template=PLAIN)
    task = asyncio.ensure_future(ask(harness))
    await harness.pool.runner.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert harness.pool.runner.cancelled == 1
    assert harness.pool.leases == 0


@in_loop
async def test_a_cancelled_request_ends_well(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ("so", " <tool_ca", asyncio.Event()))
    harness.make("m", template=TOOLS)
    task = asyncio.ensure_future(ask(harness, tools=(WEATHER,), request_id="r1"))
    await harness.pool.runner.waiting.wait()
    (entry,) = harness.service.requests.queue()
    assert (entry.id, entry.kind, entry.state, entry.output_tokens) == ("r1", "chat", "generating", 2)
    assert entry.prompt_tokens == len(harness.asks[0]["prompt"].split())
    assert harness.service.requests.cancel("r1")
    events = await task
    assert content(events) == "so <tool_ca"
    end = done(events)
    assert end.reason == "cancelled"
    assert end.stats is not None
    assert end.stats.output_tokens == 2
    assert end.stats.prompt_tokens == len(harness.asks[0]["prompt"].split())
    assert harness.pool.runner.cancelled == 1


@in_loop
async def test_cancelled_while_the_model_loads(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    harness.pool.gate.clear()
    for messages in (HI, ()):
        task = asyncio.ensure_future(ask(harness, messages=messages, request_id="r"))
        await harness.pool.asked.wait()
        harness.pool.asked.clear()
        assert [entry.state for entry in harness.service.requests.queue()] == ["loading"]
        assert harness.service.requests.cancel("r")
        assert done(await task).reason == "cancelled"
    assert harness.asks == []


def test_errors_of_the_run_are_raised_and_release_the_lease(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path, lambda prompt, format: ("so", RunnerCrashed("gone")))
    harness.make("m", template=PLAIN)
    with pytest.raises(RunnerCrashed):
        asyncio.run(ask(harness))
    harness.pool.error = Busy("server busy")
    with pytest.raises(Busy):
        asyncio.run(ask(harness))
    assert harness.pool.leases == 0
    assert harness.service.requests.queue() == []


@pytest.mark.parametrize("template", ["{{ .Nope.Deeper }}{{ .Messages }}", "{{ range .Messages }}{{ .Foo }}{{ end }}"])
def test_a_template_that_fails_is_a_bad_request(tmp_path: Path, template: str) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=template)
    with pytest.raises(BadRequest):
        asyncio.run(ask(harness))
    assert harness.pool.leases == 0


def test_a_model_with_missing_weights(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m", template=PLAIN)
    (model,) = harness.service.store.models()
    assert model.weights is not None
    model.weights.unlink()
    with pytest.raises(OllamaError, match='model "m" not found, try pulling it first') as caught:
        asyncio.run(ask(harness))
    assert caught.value.status == 404
