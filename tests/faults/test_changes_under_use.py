"""A model that is deleted or recreated during a reply: the reply continues, the next request sees the change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from support.aio import in_loop
from support.service_harness import MODELS, collect, content

from ollama_nb.api.events import Delta, Done
from ollama_nb.api.names import ModelName
from ollama_nb.api.requests import CreateRequest, GenerateRequest
from ollama_nb.errors import ModelNotFound
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings
from ollama_nb.store.assemble import assemble

pytestmark = pytest.mark.model
LONG = {"num_predict": 60, "temperature": 0, "seed": 1, "num_thread": 1}


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[Service]:
    made = Service(Settings(models=folder / "models", home=folder / "nb"))
    make(made, "stories260K-q8_0.gguf")
    try:
        yield made
    finally:
        await made.close()


def make(service: Service, gguf: str) -> None:
    digest = service.blobs.add_file(MODELS / gguf)
    request = CreateRequest(model="tales", template="{{ .Prompt }}")
    assemble(service.store, request, base=None, files={gguf: digest}, report=lambda line: None)


def ask() -> GenerateRequest:
    return GenerateRequest(model="tales", prompt="Once upon a time", options=dict(LONG))


@in_loop
async def test_deleted_during_a_reply(tmp_path: Path) -> None:
    async with service(tmp_path) as served:
        whole = content(await collect(served.generate(ask())))
        weights = served.store.resolve(ModelName("tales")).weights
        assert weights is not None
        async with aclosing(served.generate(ask())) as reply:
            first = await anext(reply)
            assert isinstance(first, Delta)
            await served.delete("tales")
            assert not weights.exists()
            events = [first, *[event async for event in reply]]
        assert content(events) == whole and isinstance(events[-1], Done)
        with pytest.raises(ModelNotFound):
            await collect(served.generate(ask()))
        assert await served.list() == []


@in_loop
async def test_recreated_during_a_reply(tmp_path: Path) -> None:
    async with service(tmp_path) as served:
        whole = content(await collect(served.generate(ask())))
        before = served.store.resolve(ModelName("tales"))
        async with aclosing(served.generate(ask())) as reply:
            first = await anext(reply)
            make(served, "stories260K-f32.gguf")
            events = [first, *[event async for event in reply]]
        assert content(events) == whole, "the answer that was begun is of the old weights"
        after = served.store.resolve(ModelName("tales"))
        assert after.weights != before.weights
        await collect(served.generate(ask()))
        loaded = {running.model.weights for running in served.running()}
        assert after.weights in loaded
