"""A new runner process reuses a prefix that an earlier one stored on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.aio import in_loop
from support.models import long_stories

from ollama_nb.api.options import Options
from ollama_nb.runner import wire
from ollama_nb.runner.process import Runner

pytestmark = pytest.mark.model
PROMPT = tuple(3 + n * n % 300 for n in range(2000))


async def once(load: wire.EngineConfig) -> tuple[wire.Finished, dict[str, Any]]:
    """Load the model, generate once, unload it."""
    runner = await Runner.start(load)
    try:
        options = Options(temperature=0.0, num_predict=48)
        request = wire.CompletionRequest(tokens=PROMPT, options=options, return_tokens=True)
        items = [item async for item in runner.complete(request)]
        last = items[-1]
        assert isinstance(last, wire.Finished)
        return last, await runner.stats()
    finally:
        await runner.stop()


@in_loop
async def test_the_second_process_continues_where_the_first_would(models: Path, tmp_path: Path) -> None:
    path = long_stories(models / "stories260K-f32.gguf", tmp_path / "long.gguf")
    load = wire.EngineConfig(
        path=str(path), n_ctx=4096, n_threads=1,
        prefix_folder=str(tmp_path / "prefixes"), prefix_bytes=1 << 30, prefix_gain=0.0,
    )  # fmt: skip
    computed, first = await once(load)
    restored, second = await once(load)
    assert first["pid"] != second["pid"]
    assert restored.tokens == computed.tokens and len(restored.tokens) == 2048
    assert (computed.cached_tokens, restored.cached_tokens) == (0, 1999)
    assert (first["disk_hits"], second["disk_hits"], second["disk_tokens"]) == (0, 1, 1999)
    assert not list((tmp_path / "prefixes").glob(".part-*")), "the end of the process waited for the write"


@in_loop
async def test_an_immediate_stop_completes_the_last_write(models: Path, tmp_path: Path) -> None:
    path = long_stories(models / "stories260K-f32.gguf", tmp_path / "long.gguf")
    folder = tmp_path / "prefixes"
    load = wire.EngineConfig(
        path=str(path), n_ctx=4096, n_threads=1, prefix_folder=str(folder), prefix_bytes=1 << 30, prefix_gain=0.0
    )
    runner = await Runner.start(load)
    request = wire.CompletionRequest(tokens=PROMPT, options=Options(temperature=0.0, num_predict=1))
    async for item in runner.complete(request):
        if isinstance(item, wire.Finished):
            await runner.stop()
    assert not list(folder.glob(".part-*"))
    again = await Runner.start(load)
    try:
        request = wire.CompletionRequest(tokens=PROMPT, options=Options(num_predict=1))
        items = [item async for item in again.complete(request)]
        assert isinstance(items[-1], wire.Finished) and items[-1].cached_tokens == 1999
    finally:
        await again.stop()
