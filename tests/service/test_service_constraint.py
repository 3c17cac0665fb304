"""Constraints beside ``format``: how they reach the engine, that only one may be given, and real replies."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.service_harness import MODELS, THINKS, ServiceHarness, collect, content, done, thinking

from ollama_nb.api.messages import Message
from ollama_nb.api.requests import ChatRequest, CreateRequest, GenerateRequest
from ollama_nb.errors import BadRequest
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings

HI = (Message("user", "hi"),)


@pytest.fixture
def harness(harness: ServiceHarness) -> ServiceHarness:
    harness.pool.runner.script = lambda prompt, format: ("yes",) if format else ("hm", "</think>", "free")
    harness.make("m", template="{{ .Prompt }}")
    harness.make("thinker", template=THINKS)
    return harness


def test_each_reaches_the_engine(harness: ServiceHarness) -> None:
    for fields, format in (
        ({"grammar": 'root ::= "a"'}, 'grammar:root ::= "a"'),
        ({"regex": "a|天"}, "regex:a|天"),
        ({"choices": ("a", '天"')}, 'choices:["a", "天\\""]'),
        ({"choices": ()}, "choices:[]"),
        ({"format": "json", "grammar": "", "regex": ""}, "json"),
        ({}, ""),
    ):
        requests: list[Any] = [
            harness.service.generate(GenerateRequest(model="m", prompt="x", **fields)),  # type: ignore[arg-type]
            harness.service.chat(ChatRequest(model="m", messages=HI, **fields)),  # type: ignore[arg-type]
        ]
        for events in requests:
            asyncio.run(collect(events))
            assert harness.asks[-1]["format"] == format


def test_thinking_is_not_constrained(harness: ServiceHarness) -> None:
    events = asyncio.run(
        collect(harness.service.chat(ChatRequest(model="thinker", messages=HI, choices=("yes", "no"))))
    )
    assert (thinking(events), content(events)) == ("hm", "yes")
    assert [ask["format"] for ask in harness.asks] == ["", 'choices:["yes", "no"]']


def test_at_most_one(harness: ServiceHarness) -> None:
    for fields, named in (
        ({"format": "json", "regex": "a"}, "format and regex"),
        ({"format": {}, "choices": ()}, "format and choices"),
        ({"grammar": "x", "regex": "a", "choices": ("a",)}, "grammar and regex and choices"),
    ):
        events = harness.service.generate(GenerateRequest(model="m", prompt="x", **fields))  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match=f"at most one of format, grammar, regex, choices: .* has {named}"):
            asyncio.run(collect(events))
    assert not harness.pool.acquired


@pytest.mark.parametrize("strict", [False, True])
def test_an_unknown_string_format_is_a_warning(harness: ServiceHarness, strict: bool) -> None:
    parts = {"a": {"type": "string", "format": "path"}, "b": {"type": "integer", "format": "int64"}}
    request = GenerateRequest(model="m", prompt="x", strict=strict, format={"type": "object", "properties": parts})
    events = asyncio.run(collect(harness.service.generate(request)))
    assert done(events).warnings == ('format: the string format "path" is unknown and constrains nothing',)


def test_warnings_of_many_unknown_formats_are_summed_up(harness: ServiceHarness) -> None:
    parts = {f"p{number}": {"format": f"f{number}"} for number in range(30)}
    request = GenerateRequest(model="m", prompt="x", format={"type": "object", "properties": parts})
    warnings = done(asyncio.run(collect(harness.service.generate(request)))).warnings
    assert len(warnings) == 11 and warnings[-1] == "format: 20 more string formats are unknown"


@pytest.mark.model
@in_loop
async def test_a_real_model_obeys_constraints_and_survives_invalid_ones(tmp_path: Path) -> None:
    service = Service(Settings(models=tmp_path / "models", home=tmp_path / "nb"))
    await service.start()

    async def say(**fields: Any) -> tuple[str, str]:
        request = GenerateRequest(model="stories", prompt="Once upon a time", raw=True, **fields)
        events = await collect(service.generate(request))
        return content(events), done(events).reason

    try:
        digest = str(service.blobs.add_file(MODELS / "stories260K-q8_0.gguf"))
        await collect(service.create(CreateRequest(model="stories", files={"x.gguf": digest})))
        for seed in range(3):
            options = {"seed": seed, "temperature": 1.2}
            assert await say(choices=("天地", "no"), options=options) in (("天地", "stop"), ("no", "stop"))
            text, _ = await say(regex=r"[a-f]{4}\d", options=options)
            assert re.fullmatch(r"[a-f]{4}\d", text)
            text, _ = await say(grammar='root ::= pair ("," pair)?\npair ::= [xy] "=" [0-9]', options=options)
            assert re.fullmatch(r"[xy]=\d(,[xy]=\d)?", text)
        bombs = ("(" * 60_000 + '"a"' + ")" * 60_000, '"a"' + "?" * 60_000, "nobody", '("a"{2000}){2000')
        for bomb in bombs:
            with pytest.raises(BadRequest, match="invalid grammar: line 1: "):
                await say(grammar=f"root ::= {bomb}")
        for regex in ("(" * 60_000, "(a", "((a{2000}){2000}){2000}"):
            with pytest.raises(BadRequest, match="invalid regex: "):
                await say(regex=regex)
        assert (await say(choices=("alive",)))[0] == "alive"
        assert len(service.running()) == 1
        assert (await service.runner_stats())[0][1]["busy_slots"] == 0
    finally:
        await service.close()
