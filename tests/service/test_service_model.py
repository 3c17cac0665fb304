"""The service with real models in real runner processes: sprout, stories260K and MiniLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.aio import in_loop
from support.service_harness import MODELS, WEATHER, calls, collect, content, done, thinking

from ollama_nb.api.events import Delta, Done, Event, PromptRead
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.requests import ChatRequest, CreateRequest, EmbedRequest, GenerateRequest
from ollama_nb.errors import BadRequest, ContextOverflow, RunnerCrashed
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings

pytestmark = pytest.mark.model


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[Service]:
    service = Service(Settings(models=folder / "models", home=folder / "nb", **settings))
    await service.start()
    try:
        yield service
    finally:
        await service.close()


async def say(service: Service, *texts: str, model: str = "sprout", **fields: Any) -> list[Event]:
    messages = tuple(Message("user" if at % 2 == 0 else "assistant", text) for at, text in enumerate(texts))
    return await collect(service.chat(ChatRequest(model=model, messages=messages, **fields)))


async def add(service: Service, name: str, file: str, **fields: Any) -> None:
    digest = service.blobs.add_file(MODELS / file)
    await collect(service.create(CreateRequest(model=name, files={file: str(digest)}, **fields)))


@in_loop
async def test_sprout_answers(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        events = await say(service, "What is the capital of France?")
        assert "Paris" in content(events)
        assert thinking(events)
        assert "<think>" not in content(events) + thinking(events)
        stats = done(events).stats
        assert stats is not None
        assert stats.prompt_tokens > 5
        assert stats.output_tokens > 5
        assert stats.context_length == 1024
        again = await say(service, "What is the capital of France?", think=False)
        assert "Paris" in content(again)
        assert not thinking(again)
        assert "你好" in content(await say(service, "你好！", think=False))
        (running,) = service.running()
        assert (running.model.name.short, running.context_length) == ("sprout:latest", 1024)


@in_loop
async def test_generate_continues_by_context(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        first = await collect(service.generate(GenerateRequest(model="sprout", prompt="My name is Ann.", think=False)))
        context = done(first).context
        assert context
        second = GenerateRequest(model="sprout", prompt="What is my name?", think=False, context=context)
        stats = done(await collect(service.generate(second))).stats
        assert stats is not None
        assert stats.prompt_tokens > len(context)
        assert stats.cached_tokens > 0


@in_loop
async def test_a_bound_answer_with_thinking(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
    question = "What is the capital of France? Answer in JSON."
    async with opened(tmp_path) as service:
        for think in (True, False):
            events = await say(service, question, format=schema, think=think)
            assert json.loads(content(events)).keys() == {"capital"}
            assert bool(thinking(events)) is think
        assert isinstance(json.loads(content(await say(service, "Answer in JSON.", format="json", think=False))), dict)


async def prompt_tokens(service: Service, model: str) -> int:
    """The prompt tokens that a loaded model has computed."""
    return int(dict(await service.runner_stats())[f"{model}:latest"]["prompt_tokens"])


@in_loop
async def test_choices_are_read_once_and_equal_single_requests(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        await add(service, "stories", "stories260K-f32.gguf")
        for model, prompt in (("stories", "Once upon a time"), ("sprout", "你好，法国的首都是什么？")):
            options = {"seed": 5, "temperature": 0.8, "num_predict": 24}
            fields: dict[str, Any] = {"model": model, "prompt": prompt, "raw": model == "stories", "think": None}
            await collect(service.generate(GenerateRequest(model=model)))
            before = await prompt_tokens(service, model)
            request = GenerateRequest(**fields, options=options, n=4, detailed=True)
            events = await collect(service.generate(request))
            stats = events[-1].stats if isinstance(events[-1], Done) else None
            assert stats is not None and isinstance(events[0], PromptRead)
            read = await prompt_tokens(service, model) - before
            assert (events[0].prompt_tokens, events[0].cached_tokens) == (stats.prompt_tokens, 0)
            assert read == stats.prompt_tokens + 3, "the others read only the last token of the prompt"
            assert sorted(event.choice for event in events if isinstance(event, Done)) == [0, 1, 2, 3]
            total = 0
            for choice in range(4):
                single = GenerateRequest(**fields, options=options | {"seed": 5 + choice})
                alone = await collect(service.generate(single))
                ours = [event for event in events if isinstance(event, Delta) and event.choice == choice]
                assert "".join(event.thinking + event.content for event in ours) == thinking(alone) + content(alone)
                end = done(alone).stats
                assert end is not None
                total += end.output_tokens
            assert stats.output_tokens == total


@in_loop
async def test_closing_frees_the_slots_of_all_choices(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        await add(service, "stories", "stories260K-f32.gguf")
        options = {"num_predict": -1, "temperature": 1.0, "stop": []}
        stream = service.generate(GenerateRequest(model="stories", prompt="Once", raw=True, n=4, options=options))
        seen: set[int] = set()
        async with aclosing(stream) as events:
            async for event in events:
                seen |= {event.choice} if isinstance(event, Delta) else set()
                if len(seen) == 4:
                    break
        for _ in range(50):
            counters = dict(await service.runner_stats())["stories:latest"]
            if not counters["busy_slots"]:
                break
            await asyncio.sleep(0.01)
        assert (counters["busy_slots"], counters["waiting"]) == (0, 0)


@in_loop
async def test_thinking_ends_at_its_budget(tmp_path: Path) -> None:
    question = "What is the capital of France?"
    async with opened(tmp_path) as service:
        free = done(await say(service, question)).stats
        assert free is not None and free.reasoning_tokens > 6
        events = await say(service, question, think_budget=6)
        stats = done(events).stats
        assert stats is not None and stats.reasoning_tokens == 6
        assert len(thinking(events).split()) <= 6 and content(events)
        assert done(events).reason == "stop"
        events = await say(service, question, think_budget=0)
        assert not thinking(events) and "Paris" in content(events)
        events = await say(service, "What is the weather in Oslo?", think_budget=4, tools=(WEATHER,), n=2)
        assert [event.choice for event in events if isinstance(event, Done)] == [0, 1]
        schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
        events = await say(service, question, think_budget=4, format=schema, n=2)
        for choice in range(2):
            texts = [event.content for event in events if isinstance(event, Delta) and event.choice == choice]
            assert json.loads("".join(texts)).keys() == {"capital"}


@in_loop
async def test_background_requests_use_what_others_leave(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        await add(service, "stories", "stories260K-f32.gguf")
        options = {"num_predict": 60, "temperature": 0, "num_ctx": 512, "draft_num_predict": 0}
        common: dict[str, Any] = {"model": "stories", "raw": True, "options": options}
        begun = asyncio.Event()

        async def work(index: int) -> str:
            text = ""
            async for event in service.generate(GenerateRequest(**common, prompt=f"{index} dogs", background=True)):
                if isinstance(event, Delta):
                    begun.set()
                    text += event.content
            return text

        tasks = [asyncio.ensure_future(work(index)) for index in range(8)]
        await begun.wait()
        assert [entry.background for entry in service.requests.queue()] == [True] * 8
        before = dict(await service.runner_stats())["stories:latest"]["rows"]
        request = GenerateRequest(**common, prompt="Once upon a time")
        interactive = await collect(service.generate(request))
        after = dict(await service.runner_stats())["stories:latest"]["rows"]
        assert not any(task.done() for task in tasks)
        assert after.get("1", 0) - before.get("1", 0) >= 58, "its steps served no other request"
        assert len(content(interactive)) > 60
        assert all(map(len, await asyncio.gather(*tasks)))


@in_loop
async def test_a_prompt_of_token_ids(tmp_path: Path, reference: dict[str, Any]) -> None:
    greedy = reference["stories260K"]["greedy"][0]
    options = {"temperature": 0, "num_predict": 64}
    async with opened(tmp_path) as service:
        await add(service, "stories", "stories260K-f32.gguf")
        request = GenerateRequest(model="stories", tokens=tuple(greedy["prompt_tokens"]), options=options)
        events = await collect(service.generate(request))
        assert content(events) == greedy["text"]
        assert done(events).context == tuple(greedy["prompt_tokens"][1:] + greedy["tokens"])
        with pytest.raises(BadRequest, match='512 is not a token of "stories": its tokens are 0 to 511'):
            await collect(service.generate(GenerateRequest(model="stories", tokens=(512,))))
        long = GenerateRequest(model="stories", tokens=(1, 2) * 400, options={"num_ctx": 64, "num_predict": 1})
        stats = done(await collect(service.generate(long))).stats
        assert stats is not None and stats.prompt_tokens_dropped == 800 - stats.prompt_tokens
        with pytest.raises(ContextOverflow):
            await collect(service.generate(replace(long, truncate=False)))


@in_loop
async def test_the_stop_string_is_reported(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        await add(service, "stories", "stories260K-f32.gguf")
        options = {"temperature": 0, "num_predict": 64, "stop": ["nowhere", " park"]}
        request = GenerateRequest(model="stories", prompt="Once upon a time", raw=True, options=options)
        end = done(await collect(service.generate(request)))
        assert (end.reason, end.stop_sequence) == ("stop", " park")


@in_loop
async def test_tools_there_and_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        ask = Message("user", "What is the weather in Oslo?")
        request = ChatRequest(model="sprout", messages=(ask,), tools=(WEATHER,), think=False)
        events = await collect(service.chat(request))
        assert calls(events) == ["weather"]
        call = Message("assistant", tool_calls=(ToolCall("weather", {"city": "Oslo"}),))
        result = Message("tool", "12 degrees, rain", tool_name="weather")
        request = ChatRequest(model="sprout", messages=(ask, call, result), tools=(WEATHER,), think=False)
        assert content(await collect(service.chat(request)))


@in_loop
async def test_a_long_conversation_still_fits(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        talk = [f"{word} {at} " * 40 for at in range(20) for word in ("Please count", "I count")]
        events = await say(service, *talk, "What is the capital of France?", think=False, options={"num_predict": 8})
        stats = done(events).stats
        assert stats is not None
        assert stats.messages_dropped > 20
        assert stats.prompt_tokens < 1024
        assert stats.prompt_tokens_dropped > 1024


@in_loop
async def test_a_jinja_chat_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        await add(service, "tiny", "stories260K-q8_0.gguf", parameters={"num_ctx": 64, "num_predict": 4})
        assert done(await say(service, "Once upon a time", model="tiny")).reason == "length"
        with pytest.raises(BadRequest, match="the prompt is longer than the context length currently available"):
            await say(service, "Once upon a time " * 60, model="tiny")
        request = GenerateRequest(model="tiny", prompt="Once upon a time " * 60)
        stats = done(await collect(service.generate(request))).stats
        assert stats is not None
        assert stats.prompt_tokens_dropped > 0


@in_loop
async def test_stopping_frees_the_slot(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        await add(service, "tiny", "stories260K-q8_0.gguf", parameters={"temperature": 0})
        endless = GenerateRequest(model="tiny", prompt="Once", raw=True, options={"num_predict": -1}, request_id="r")
        async with aclosing(service.generate(endless)) as events:
            await anext(events)
        async for event in service.generate(endless):
            if not isinstance(event, Done):
                service.requests.cancel("r")
        assert isinstance(event, Done)
        assert event.reason == "cancelled"
        assert event.stats is not None
        assert event.stats.output_tokens >= 1
        while True:  # The cancel is on its way: it is seen between two steps.
            ((name, counters),) = await service.runner_stats()
            if not counters["busy_slots"] and not counters["waiting"]:
                break
        assert name == "tiny:latest"


@in_loop
async def test_a_runner_that_is_killed_costs_one_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        await add(service, "tiny", "stories260K-q8_0.gguf")
        request = GenerateRequest(model="tiny", prompt="Once", raw=True, options={"num_predict": -1})
        with pytest.raises(RunnerCrashed, match="an error was encountered while running the model: "):
            async for _ in service.generate(request):
                for runner in service._backend.pool._runners.values():
                    os.kill(runner.pid, signal.SIGKILL)
        short = GenerateRequest(model="tiny", prompt="Once", raw=True, options={"num_predict": 3})
        assert content(await collect(service.generate(short)))


@in_loop
async def test_embeddings_are_the_references(tmp_path: Path, reference: dict[str, Any]) -> None:
    async with opened(tmp_path) as service:
        await add(service, "minilm", "all-MiniLM-L6-v2-q8_0.gguf")
        cases = reference["all-MiniLM-L6-v2"]["embeddings"]
        found = await service.embed(EmbedRequest(model="minilm", inputs=tuple(case["text"] for case in cases)))
        for vector, case in zip(found.vectors, cases, strict=True):
            assert np.dot(vector, case["vector"]) / np.linalg.norm(case["vector"]) >= 0.998
        short = await service.embed(EmbedRequest(model="minilm", inputs=("hello",), dimensions=16))
        assert len(short.vectors[0]) == 16
        assert np.linalg.norm(short.vectors[0]) == pytest.approx(1.0, abs=1e-5)
        with pytest.raises(BadRequest, match='"minilm" does not support chat'):
            await say(service, "hi", model="minilm")


@in_loop
async def test_unload(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        assert await collect(service.chat(ChatRequest(model="sprout"))) == [Done("load")]
        assert len(service.running()) == 1
        assert await collect(service.chat(ChatRequest(model="sprout", keep_alive=0.0))) == [Done("unload")]
        assert service.running() == []


@in_loop
async def test_many_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path, num_parallel=4) as service:
        questions = ["What is the capital of France?", "Why is the sky blue?", "你好！", "Count to three"]
        alone = [content(await say(service, question, think=False)) for question in questions]
        together = await asyncio.gather(*(say(service, question, think=False) for question in questions))
        assert [content(events) for events in together] == alone
