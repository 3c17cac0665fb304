"""The service with real models in real runner processes: sprout, stories260K and MiniLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.aio import in_loop
from support.service_harness import MODELS, WEATHER, calls, collect, content, done, thinking

from ollama_nb.api.events import Done, Event
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.requests import ChatRequest, CreateRequest, EmbedRequest, GenerateRequest
from ollama_nb.errors import BadRequest, RunnerCrashed
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
