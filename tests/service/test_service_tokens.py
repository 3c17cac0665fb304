"""Tokenize and detokenize: how texts are tokenized, and that no weights are loaded for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.service_harness import BAD_NAME, MODELS, TOOLS, WEATHER, ServiceHarness, collect

from ollama_nb.api.messages import Message
from ollama_nb.api.requests import CreateRequest, EmbedRequest, GenerateRequest, TokenizeRequest
from ollama_nb.errors import OllamaError
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings

HI = (Message("user", "hi there"),)


@pytest.fixture
def harness(harness: ServiceHarness) -> ServiceHarness:
    harness.make("m", template="<s>{{ range .Messages }}<{{ .Role }}> {{ .Content }} {{ end }}", system="be kind")
    harness.make("tools", template=TOOLS)
    return harness


def ask(harness: ServiceHarness, **fields: Any) -> tuple[int, ...]:
    return asyncio.run(harness.service.tokenize(TokenizeRequest(**{"model": "m", **fields})))


def test_a_prompt_is_tokenized_as_it_is(harness: ServiceHarness) -> None:
    assert ask(harness, prompt="a b c") == (0, 1, 2)
    assert harness.pool.runner.tokenized == (("a b c",), True, False)
    ask(harness, prompt="", add_special=False, parse_special=True)
    assert harness.pool.runner.tokenized == (("",), False, True)


def test_messages_are_tokenized_as_rendered(harness: ServiceHarness) -> None:
    ask(harness, messages=HI, add_special=False)
    expected = "<s><system> be kind <user> hi there "
    assert harness.pool.runner.tokenized == ((expected,), True, True)
    ask(harness, model="tools", messages=HI, tools=(WEATHER,))
    tokenized = harness.pool.runner.tokenized
    assert tokenized is not None and "weather" in tokenized[0][0]
    assert not harness.pool.acquired, "nothing was loaded"


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": ""}, 400, "model is required"),
        ({"model": "no"}, 404, "model 'no' not found"),
        ({"model": "a b"}, 400, BAD_NAME),
        ({"prompt": "x", "messages": HI}, 400, 'give either "prompt" or "messages", not both'),
        ({}, 400, 'give "prompt" or "messages": this request has nothing to count'),
        ({"messages": HI, "think": True}, 400, '"m" does not support thinking'),
        ({"messages": HI, "tools": (WEATHER,)}, 400, "registry.ollama.ai/library/m:latest does not support tools"),
    ],
)
def test_errors(harness: ServiceHarness, fields: dict[str, Any], status: int, message: str) -> None:
    with pytest.raises(OllamaError) as caught:
        ask(harness, **fields)
    assert (caught.value.status, caught.value.message) == (status, message)


def test_invalid_tokens_are_refused(harness: ServiceHarness) -> None:
    assert asyncio.run(harness.service.detokenize("m", (3, 99))) == "<3><99>"
    for token in (-1, 100, 1 << 62):
        with pytest.raises(OllamaError, match=f'{token} is not a token of "m": its tokens are 0 to 99') as caught:
            asyncio.run(harness.service.detokenize("m", (1, token)))
        assert caught.value.status == 400
    for model, message in (("", "model is required"), ("no", "model 'no' not found")):
        with pytest.raises(OllamaError, match=message):
            asyncio.run(harness.service.detokenize(model, ()))


@pytest.mark.model
@in_loop
async def test_real_vocabularies_without_loading_weights(tmp_path: Path, reference: dict[str, Any]) -> None:
    service = Service(Settings(models=tmp_path / "models", home=tmp_path / "nb"))
    await service.start()
    try:
        for name, file in (("stories", "stories260K-f32.gguf"), ("minilm", "all-MiniLM-L6-v2-q8_0.gguf")):
            digest = str(service.blobs.add_file(MODELS / file))
            await collect(service.create(CreateRequest(model=name, files={file: digest})))
        for entry in reference["all-MiniLM-L6-v2"]["embeddings"]:
            tokens = await service.tokenize(TokenizeRequest(model="minilm", prompt=entry["text"]))
            assert list(tokens) == entry["tokens"]
        text = "Once upon a time, 从前"
        bare = TokenizeRequest(model="stories", prompt=text, add_special=False)
        tokens = await service.tokenize(bare)
        assert await service.detokenize("stories", tokens) == text
        assert service.running() == []
        done = (await collect(service.generate(GenerateRequest(model="stories", prompt=text, raw=True,
                                                               options={"num_predict": 1}))))[-1]  # fmt: skip
        with_bos = await service.tokenize(TokenizeRequest(model="stories", prompt=text))
        assert done.stats.prompt_tokens == len(with_bos) == len(tokens) + 1  # type: ignore[union-attr]
        assert await service.tokenize(bare) == tokens, "the loaded model gives the same tokens"
        await service.embed(EmbedRequest(model="minilm", inputs=("x",)))
        assert {running.model.name.model for running in service.running()} == {"stories", "minilm"}
    finally:
        await service.close()
