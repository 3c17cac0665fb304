"""Ignored fields, dropped messages, and the record from which a run can be repeated."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.service_harness import MODELS, PLAIN, ServiceHarness, collect, content, done

from ollama_nb.api.messages import Message
from ollama_nb.api.requests import ChatRequest, CreateRequest, EmbedRequest, GenerateRequest
from ollama_nb.errors import BadRequest
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings

HI = (Message("user", "hi"),)


@pytest.fixture
def harness(harness: ServiceHarness) -> ServiceHarness:
    harness.make("m", template=PLAIN, parameters={"top_k": 7, "mirostat": 1})
    harness.make("minilm", "all-MiniLM-L6-v2-q8_0.gguf")
    return harness


def ask(harness: ServiceHarness, **fields: Any) -> Any:
    request = ChatRequest(model="m", messages=HI, **fields)
    return done(asyncio.run(collect(harness.service.chat(request))))


def test_everything_ignored_is_reported(harness: ServiceHarness) -> None:
    options = {"tempreture": 1, "low_vram": True}
    assert ask(harness, options=options, ignored=("ignored field x",)).warnings == (
        "ignored field x",
        'option "mirostat" is deprecated and has no effect',
        'unknown option "tempreture", did you mean "temperature"?',
        'option "low_vram" is deprecated and has no effect',
    )


def test_strict_refuses_fields_without_effect(harness: ServiceHarness) -> None:
    for fields, message in (
        ({"options": {"tempreture": 1}}, 'unknown option "tempreture", did you mean "temperature"?'),
        ({"ignored": ("a", "b"), "options": {"numa": True}}, 'a; b; option "numa" is deprecated and has no effect'),
    ):
        with pytest.raises(BadRequest) as caught:
            ask(harness, strict=True, **fields)
        assert caught.value.message == message
        with pytest.raises(BadRequest):
            asyncio.run(harness.service.embed(EmbedRequest(model="minilm", inputs=("x",), strict=True, **fields)))
    assert not harness.pool.acquired
    assert ask(harness, strict=True, options={"top_k": 1}).warnings, (
        "what the model itself stores is no request's fault"
    )


def test_a_run_record_on_demand(harness: ServiceHarness) -> None:
    assert ask(harness).run is None
    run = ask(harness, run_record=True, options={"num_ctx": 64, "stop": ["x"]}).run
    assert run["model"] == "m:latest" and len(run["model_digest"]) == len("sha256:") + 64
    assert run["template_hash"] == "sha256:" + hashlib.sha256(PLAIN.encode()).hexdigest()
    assert run["prompt_hash"] == "sha256:" + hashlib.sha256(harness.asks[-1]["prompt"].encode()).hexdigest()
    assert (run["options"]["top_k"], run["options"]["num_ctx"], run["options"]["stop"]) == (7, 64, ("x",))
    assert run["engine_build"] == "fake"
    assert run["seed"] == run["options"]["seed"] == harness.asks[-1]["options"].seed
    assert 0 <= run["seed"] < 1 << 32
    assert ask(harness, run_record=True, options={"seed": 5}).run["seed"] == 5
    assert len({ask(harness, run_record=True).run["seed"] for _ in range(5)}) == 5


@pytest.mark.model
@in_loop
async def test_a_run_is_repeated_from_its_record(tmp_path: Path) -> None:
    service = Service(Settings(models=tmp_path / "models", home=tmp_path / "nb"))
    await service.start()

    async def say(**options: Any) -> tuple[str, Any]:
        request = GenerateRequest(model="stories", prompt="Once", raw=True, options=options, run_record=True)
        events = await collect(service.generate(request))
        return content(events), done(events).run

    try:
        digest = str(service.blobs.add_file(MODELS / "stories260K-f32.gguf"))
        await collect(service.create(CreateRequest(model="stories", files={"x.gguf": digest})))
        text, run = await say(num_predict=24, temperature=1.5)
        again, same = await say(**run["options"])
        assert again == text
        assert {**same["options"]} == {**run["options"]}
        assert same == run
        assert run["engine_build"].startswith("llama-cpp-python ")
        assert len({text, *[(await say(num_predict=24, temperature=1.5))[0] for _ in range(3)]}) > 1
    finally:
        await service.close()
