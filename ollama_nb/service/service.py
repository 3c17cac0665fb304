"""The functions of Ollama as one asynchronous object, independent of a transport; both HTTP hosts use it.

It opens the store, the runner pool and the render process, binds the use cases to them, and closes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ollama_nb.api.models import Model, Running
from ollama_nb.errors import OllamaError
from ollama_nb.redact import hide_folders
from ollama_nb.runner import children
from ollama_nb.runner.pool import Pool
from ollama_nb.runner.renderer import Renderer
from ollama_nb.runner.vocabularies import Vocabularies
from ollama_nb.service.backend import Backend
from ollama_nb.service.batch_worker import BatchWorker
from ollama_nb.service.chat import run_chat
from ollama_nb.service.crashes import CrashJournal
from ollama_nb.service.create import run_create
from ollama_nb.service.embed import embed, embeddings, rerank
from ollama_nb.service.generate import run_generate
from ollama_nb.service.models import copy, delete, list_models, show
from ollama_nb.service.requests import Meter, Requests
from ollama_nb.service.resolve import find, parse_name
from ollama_nb.service.tokens import detokenize, render, tokenize
from ollama_nb.service.transfer import pull_model, push_model
from ollama_nb.settings import Settings
from ollama_nb.store import workdir
from ollama_nb.store.blobs import BlobStore
from ollama_nb.store.store import Store

_log = logging.getLogger("ollama_nb.service")


class Service:
    """The use cases, bound to one backend, and the batches. It belongs to one event loop.

    Closing a generator that one of them returns cancels the work behind it.
    """

    def __init__(self, settings: Settings, *, pool: Pool | None = None, renderer: Renderer | None = None) -> None:
        self.requests = Requests()
        backend = self._backend = Backend(
            settings,
            Store(settings.models, noprune=settings.noprune, others=settings.extra_models),
            pool or Pool(settings),
            renderer or Renderer(),
            self.requests,
            Vocabularies(settings),
        )
        self.chat = partial(run_chat, backend)
        self.generate = partial(run_generate, backend)
        self.embed = partial(embed, backend)
        self.embeddings = partial(embeddings, backend)
        self.rerank = partial(rerank, backend)
        self.tokenize = partial(tokenize, backend)
        self.detokenize = partial(detokenize, backend)
        self.render = partial(render, backend)
        self.list = partial(list_models, backend)
        self.show = partial(show, backend)
        self.copy = partial(copy, backend)
        self.delete = partial(delete, backend)
        self.create = partial(run_create, backend)
        self.pull = partial(pull_model, backend)
        self.push = partial(push_model, backend)
        self.batches = BatchWorker(settings.home, self._slots)
        self._crashes = CrashJournal(settings.home)

    async def start(self) -> None:
        """Record crashes, and tidy the store. If that fails, it is logged; requests that need the store report it."""
        with contextlib.suppress(OSError):  # a folder below it, made first, would give it default permissions
            self._backend.settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._crashes.open()
        try:
            await asyncio.to_thread(self._tidy)
        except OllamaError as error:
            _log.warning("the model store was not tidied: %s", error.message)

    async def close(self) -> None:
        """Stop working on batches and end every child process."""
        await self.batches.stop()
        backend = self._backend
        await asyncio.gather(backend.pool.close(), backend.renderer.close(), backend.vocabularies.close())
        self._crashes.close()

    async def check_start(self) -> None:
        """Raise OllamaError unless a child process can be started; the result is used for some seconds."""
        await children.check_start()

    @property
    def meter(self) -> Meter:
        """Receives the figures of all replies; the host sets it."""
        return self._backend.meter

    @meter.setter
    def meter(self, meter: Meter) -> None:
        self._backend.meter = meter

    @property
    def blobs(self) -> BlobStore:
        return self._backend.store.blobs

    @property
    def store(self) -> Store:
        return self._backend.store

    @property
    def home(self) -> Path:
        """The folder for our own state."""
        return self._backend.settings.home

    def public(self, error: OllamaError) -> OllamaError:
        """The error as clients may see it: without the absolute paths of the stores and of the user's home."""
        text, stores = error.message, (self.store, *self.store.others)
        hidden = hide_folders(text, (self.home, *(store.root for store in stores)))
        return error if hidden == text else error.with_message(hidden)

    async def model(self, name: str) -> Model:
        """Return the local model named ``name``. Raises InvalidName, Forbidden and ModelNotFound."""
        return await find(self._backend, name)

    async def digest(self, name: str) -> str:
        """Return the digest of the local model named ``name``. Raises as ``model`` does."""
        return (await self.model(name)).digest

    def running(self) -> Sequence[Running]:
        return self._backend.pool.running()

    def _slots(self, model: str) -> int:
        """How many requests the model named ``model`` handles at a time; 0 if it is not loaded."""
        try:
            name = parse_name(model)
        except OllamaError:
            return 0
        return next((running.slots for running in self.running() if running.model.name == name), 0)

    async def runner_stats(self) -> Sequence[tuple[str, dict[str, Any]]]:
        """Return the engine's counters of every loaded model, by short name."""
        return [(model.name.short, counters) for model, counters in await self._backend.pool.stats()]

    def _tidy(self) -> None:
        store = self._backend.store
        store.fix_legacy_names()
        store.prune()
        workdir.remove_stale(self._backend.settings.home / "tmp")
