"""A scripted service below real request handlers: replies, errors and pauses without a model.

``FakeService.script`` is what the next chat or generate does: events and progress lines are yielded, errors raised,
awaitables awaited. ``closed`` is set when a generator ends for any reason.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ollama_nb.api.events import Done, Embeddings, Ranking, Stats
from ollama_nb.api.requests import (
    ChatRequest,
    CreateRequest,
    EmbedRequest,
    GenerateRequest,
    PullRequest,
    PushRequest,
    RerankRequest,
    TokenizeRequest,
)
from ollama_nb.errors import BadRequest, Cancelled, ModelNotFound, OllamaError
from ollama_nb.service.batch_worker import BatchWorker
from ollama_nb.service.requests import Requests
from ollama_nb.store.store import Store


class FakeService:
    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.home = root.parent / "state"
        self.requests = Requests()
        self.batches = BatchWorker(root.parent / "nb", lambda model: 1)
        self.script: list[Any] = []
        self.asked: list[Any] = []
        self.embeddings_result = Embeddings(())
        self.closed = asyncio.Event()
        self.yielded = 0

    @property
    def blobs(self) -> Any:
        return self.store.blobs

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def public(self, error: OllamaError) -> OllamaError:
        return error

    async def check_start(self) -> None:
        pass

    def chat(self, request: ChatRequest) -> AsyncIterator[Any]:
        return self._play(request, request.request_id)

    def generate(self, request: GenerateRequest) -> AsyncIterator[Any]:
        return self._play(request, request.request_id)

    def create(self, request: CreateRequest) -> AsyncIterator[Any]:
        return self._play(request, "")

    def pull(self, request: PullRequest) -> AsyncIterator[Any]:
        return self._play(request, request.request_id)

    def push(self, request: PushRequest) -> AsyncIterator[Any]:
        return self._play(request, request.request_id)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self.asked.append(request)
        return self.embeddings_result

    embeddings = embed

    async def rerank(self, request: RerankRequest) -> Ranking:
        self.asked.append(request)
        if request.query == "wrong":
            raise BadRequest("no")
        return Ranking(((1, 0.75), (0, 0.5)), "rank", 9)

    async def tokenize(self, request: TokenizeRequest) -> tuple[int, ...]:
        self.asked.append(request)
        return (1, 2, 3)

    async def detokenize(self, model: str, tokens: tuple[int, ...]) -> str:
        self.asked.append((model, tokens))
        return "天 & <x>"

    async def list(self) -> list[Any]:
        return []

    async def show(self, model: str, verbose: bool, system: str, options: Any) -> Any:
        raise ModelNotFound(f"model '{model}' not found")

    async def copy(self, source: str, destination: str) -> None:
        self.asked.append((source, destination))

    async def digest(self, model: str) -> str:
        if model == "no":
            raise ModelNotFound(f"model '{model}' not found")
        return "d" * 64

    async def delete(self, model: str) -> None:
        self.asked.append(model)

    async def runner_stats(self) -> list[Any]:
        return []

    def running(self) -> list[Any]:
        return []

    async def _play(self, request: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append(request)
        self.closed.clear()
        try:
            with self.requests.enter(request_id, request.model, "chat") as live:
                for step in self.script:
                    if isinstance(step, Exception):
                        raise step
                    if inspect.isawaitable(step):
                        try:
                            with live.interruptible():
                                await step
                        except Cancelled:
                            yield Done("cancelled", Stats())
                            return
                    else:
                        self.yielded += 1
                        yield step
        finally:
            self.closed.set()
