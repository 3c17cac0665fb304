"""The real runner process with real small models."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.models import vocabulary

from ollama_nb.api.options import Options
from ollama_nb.engine.tokenizer import MAX_UNSPLIT
from ollama_nb.errors import BadRequest, ContextOverflow, LoadError, RunnerCrashed
from ollama_nb.runner import wire
from ollama_nb.runner.process import Runner
from ollama_nb.sprout import GGUF

pytestmark = pytest.mark.model
GREEDY = Options(temperature=0.0, num_predict=24)


@contextlib.asynccontextmanager
async def running(path: Path, **load: Any) -> AsyncIterator[Runner]:
    runner = await Runner.start(wire.EngineConfig(path=str(path), n_threads=1, **{"n_ctx": 512, "n_seq": 8, **load}))
    try:
        yield runner
    finally:
        await runner.stop()


async def text_of(runner: Runner, prompt: str, options: Options = GREEDY) -> tuple[str, wire.Finished]:
    out = ""
    async for item in runner.complete(wire.CompletionRequest(prompt=prompt, options=options)):
        if isinstance(item, wire.Finished):
            return out, item
        out += item.text
    raise AssertionError("a stream ended without Finished")


@in_loop
async def test_streams_eight_at_once_in_one_batch(models: Path, reference: dict[str, Any]) -> None:
    async with running(models / "stories260K-f32.gguf") as runner:
        assert (runner.loaded.n_ctx, runner.loaded.n_seq, runner.loaded.pooling) == (512, 8, "none")
        answers = await asyncio.gather(*(text_of(runner, "Once upon a time") for _ in range(8)))
        expected = ", there was a little girl named Lily. She loved to play"
        assert all(text.startswith(expected) for text, _ in answers)
        assert all((end.reason, end.output_tokens) == ("length", 24) for _, end in answers)
        assert (await runner.stats())["max_rows"] == 8


@in_loop
async def test_cancel_frees_the_slot(models: Path) -> None:
    async with running(models / "stories260K-f32.gguf") as runner:
        stream = runner.complete(
            wire.CompletionRequest(prompt="Once upon a time", options=Options(num_predict=5000, temperature=0.0))
        )
        for _ in range(3):
            await anext(stream)
        await stream.aclose()
        stats = await runner.stats()
        while stats["busy_slots"]:  # the step that runs when the Cancel arrives may end first
            stats = await runner.stats()
        before = stats["output_tokens"]
        assert (await runner.stats())["output_tokens"] == before


@in_loop
async def test_tokenize_and_detokenize(models: Path) -> None:
    async with running(models / "stories260K-f32.gguf") as runner:
        (tokens,) = await runner.tokenize(["a little girl"], add_special=False)
        assert await runner.count_tokens(["a little girl", ""], add_special=False) == (len(tokens), 0)
        assert await runner.detokenize(tokens) == "a little girl"


@in_loop
@pytest.mark.parametrize("kind", ["prompt", "text"])
async def test_leaving_while_a_long_text_is_tokenized(kind: str, models: Path) -> None:
    """F21, F22: tokenizing takes hundreds of steps; a reply continues beside it, and it ends within a few steps."""
    text = "\n" * 4_000_000
    async with running(models / "stories260K-f32.gguf") as runner:
        other = runner.complete(wire.CompletionRequest(prompt="Once upon a time", options=Options(num_predict=100_000)))
        await anext(other)
        reading = asyncio.ensure_future(text_of(runner, text) if kind == "prompt" else runner.count_tokens([text]))
        while not (await runner.stats())["tokenizing"]:
            pass
        for _ in range(5):
            await anext(other)
        assert (await runner.stats())["tokenizing"] == 1, "it did not block the reply"
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        assert reading.cancelled()
        first = last = await runner.stats()  # the runner has received the cancellation
        while last["tokenizing"]:
            last = await runner.stats()
        assert last["decodes"] - first["decodes"] <= 3, "the next step ends it"
        await anext(other)
        await other.aclose()


@in_loop
async def test_embeds(models: Path) -> None:
    async with running(models / "all-MiniLM-L6-v2-q8_0.gguf", n_seq=1) as runner:
        found = await runner.embed(["a cat", "a dog"])
        assert found.dimensions == 384
        floats = struct.unpack(f"<{2 * 384}f", found.vectors)
        assert sum(x * x for x in floats[:384]) == pytest.approx(1.0, abs=1e-4)
        with pytest.raises(ContextOverflow, match="the input length exceeds the context length"):
            await runner.embed(["cat " * 2000], truncate=False)
        with pytest.raises(BadRequest):
            await text_of(runner, "no text from this one")


@in_loop
async def test_an_error_of_the_engine_keeps_its_class(models: Path) -> None:
    async with running(models / "stories260K-f32.gguf") as runner:
        with pytest.raises(ContextOverflow) as found:
            too_long = wire.CompletionRequest(prompt="cat " * 2000, options=Options(), truncate=False)
            async for _ in runner.complete(too_long):
                pass
        assert (found.value.status, found.value.code) == (400, "context_overflow")


@in_loop
async def test_a_kill_fails_the_stream_and_a_new_runner_works(models: Path) -> None:
    runner = await Runner.start(wire.EngineConfig(path=str(models / "stories260K-f32.gguf"), n_ctx=512, n_threads=1))
    stream = runner.complete(wire.CompletionRequest(prompt="Once upon a time", options=Options(num_predict=5000)))
    await anext(stream)
    os.kill(runner.pid, signal.SIGKILL)
    with pytest.raises(RunnerCrashed, match="an error was encountered while running the model: killed by SIGKILL"):
        async for _ in stream:
            pass
    await runner.stop()


@in_loop
async def test_an_invalid_model_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(LoadError):
        await Runner.start(wire.EngineConfig(path=str(broken), n_ctx=512))
    with pytest.raises(LoadError):
        await Runner.start(wire.EngineConfig(path=str(tmp_path / "missing.gguf"), n_ctx=512))


@in_loop
async def test_a_vocabulary_alone_counts_tokens(models: Path) -> None:
    async with running(models / "stories260K-f32.gguf", vocab_only=True) as runner:
        assert await runner.count_tokens(["Once upon a time"]) == (5,)


@in_loop
@pytest.mark.parametrize("expression", ["tekken", "deepseek-llm"])
async def test_a_word_of_any_length_does_not_overflow_the_stack(expression: str, tmp_path: Path) -> None:
    """These expressions need 323 bytes of stack for each letter; 30,000 of them ended the process."""
    path = vocabulary(GGUF, tmp_path / "vocabulary.gguf", pre=expression)
    async with running(path, vocab_only=True) as runner:
        assert await runner.count_tokens(["a" * MAX_UNSPLIT, " " * MAX_UNSPLIT]) > (MAX_UNSPLIT // 8, MAX_UNSPLIT // 8)
        with pytest.raises(BadRequest, match="break it up"):
            await runner.count_tokens(["a" * (MAX_UNSPLIT + 1)])
        assert await runner.count_tokens(["a"]) == (1,)
