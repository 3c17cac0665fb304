"""What Ollama does, asynchronous and without a transport: one object that both HTTP hosts hold.

It opens the store, the runners and the render process, hands them to the use cases beside it, and closes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ollama_nb.api.chat import (
    ChatRequest,
    CreateRequest,
    EmbedRequest,
    GenerateRequest,
    PullRequest,
    PushRequest,
    RerankRequest,
    TokenizeRequest,
)
from ollama_nb.api.events import Embeddings, Event, Progress, Ranking
from ollama_nb.api.models import Listed, Running, Shown
from ollama_nb.errors import OllamaError
from ollama_nb.runner.pool import Pool
from ollama_nb.runner.renderer import Renderer
from ollama_nb.runner.vocabularies import Vocabularies
from ollama_nb.service.backend import Backend
from ollama_nb.service.chat import chat
from ollama_nb.service.create import create
from ollama_nb.service.embed import embed, embeddings
from ollama_nb.service.generate import generate
from ollama_nb.service.metering import Meter, NoMeter, metered
from ollama_nb.service.models import copy, delete, list_models, show
from ollama_nb.service.requests import Requests
from ollama_nb.service.rerank import rerank
from ollama_nb.service.resolve import find
from ollama_nb.service.tokens import detokenize, tokenize
from ollama_nb.service.transfer import pull, push
from ollama_nb.settings import Settings
from ollama_nb.store import workdir
from ollama_nb.store.blobs import BlobStore
from ollama_nb.store.store import Store

_log = logging.getLogger("ollama_nb.service")


class Service:
    """Belongs to one event loop. Closing a generator that it gave out cancels the work behind it."""

    def __init__(self, settings: Settings, *, pool: Pool | None = None, renderer: Renderer | None = None) -> None:
        self.requests = Requests()
        self.meter: Meter = NoMeter()
        self._backend = Backend(
            settings,
            Store(settings.models, noprune=settings.noprune, others=settings.extra_models),
            pool or Pool(settings),
            renderer or Renderer(),
            self.requests,
            Vocabularies(settings),
        )

    async def start(self) -> None:
        """Tidy the store. A store that cannot be tidied is reported by the request that needs it."""
        with contextlib.suppress(OSError):  # whoever makes a folder below it first would leave it open to others
            self._backend.settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            await asyncio.to_thread(self._tidy)
        except OllamaError as error:
            _log.warning("the model store was not tidied: %s", error.message)

    async def close(self) -> None:
        """End every child process."""
        backend = self._backend
        await asyncio.gather(backend.pool.close(), backend.renderer.close(), backend.vocabularies.close())

    @property
    def blobs(self) -> BlobStore:
        return self._backend.store.blobs

    @property
    def store(self) -> Store:
        return self._backend.store

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        return metered(chat(self._backend, request), self.meter, request.model)

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        return metered(generate(self._backend, request), self.meter, request.model)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await embed(self._backend, request)

    async def embeddings(self, request: EmbedRequest) -> Embeddings:
        """The older endpoint; it differs in its errors only."""
        return await embeddings(self._backend, request)

    async def rerank(self, request: RerankRequest) -> Ranking:
        return await rerank(self._backend, request)

    async def tokenize(self, request: TokenizeRequest) -> tuple[int, ...]:
        return await tokenize(self._backend, request)

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        return await detokenize(self._backend, model, tokens)

    async def list(self) -> list[Listed]:
        return await list_models(self._backend)

    async def show(
        self, model: str, verbose: bool = False, system: str = "", options: Mapping[str, Any] | None = None
    ) -> Shown:
        return await show(self._backend, model, verbose=verbose, system=system, options=options)

    async def copy(self, source: str, destination: str) -> None:
        await copy(self._backend, source, destination)

    async def delete(self, model: str) -> None:
        await delete(self._backend, model)

    def create(self, request: CreateRequest) -> AsyncGenerator[Progress, None]:
        return create(self._backend, request)

    def pull(self, request: PullRequest) -> AsyncGenerator[Progress, None]:
        return pull(self._backend, request)

    def push(self, request: PushRequest) -> AsyncGenerator[Progress, None]:
        return push(self._backend, request)

    async def digest(self, model: str) -> str:
        """The digest of the local model that ``model`` names. Raises InvalidName, ModelNotFound and the like."""
        return (await find(self._backend, model)).digest

    def running(self) -> Sequence[Running]:
        return self._backend.pool.running()

    async def runner_stats(self) -> Sequence[tuple[str, dict[str, Any]]]:
        """The engine's counters of every loaded model, by its short name."""
        return [(model.name.short, counters) for model, counters in await self._backend.pool.stats()]

    def _tidy(self) -> None:
        store = self._backend.store
        store.fix_legacy_names()
        store.prune()
        workdir.sweep(self._backend.settings.home / "tmp")
