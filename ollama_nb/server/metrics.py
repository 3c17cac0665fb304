"""``GET /metrics``: figures as Prometheus reads them, in a registry of each server's own.

Labels are bounded: at most 50 models by name, the rest as ``other``; never a prompt, a key or a path. The latencies
have the names of OpenTelemetry's conventions for generative AI, everything else begins with ``ollama_nb_``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ollama_nb.api.events import Stats
from ollama_nb.api.models import Running
from ollama_nb.api.names import ModelName
from ollama_nb.errors import OllamaError
from ollama_nb.service.requests import QUEUED, STATES, QueueEntry
from ollama_nb.store.store import Store
from ollama_nb.store.usage import Usage, usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
MOST_MODELS = 50
LAG_SECONDS = 0.5
STORE_SECONDS = 15.0
"""How long a look at the store is good for: it asks for the size of every blob."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """All figures of one server. Belongs to its event loop."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._models: set[str] = set()
        self._lag: asyncio.Task[None] | None = None
        self._looked = 0.0
        self._usage: Usage | None = None
        self._requests = self._counter("requests", "Requests that were answered", "route", "model", "code")
        self._seconds = self._histogram("request_duration_seconds", "From request to answer", _SECONDS, "route")
        self._rejected = self._counter("rejected", "Requests refused because the queue was full or the server ending")
        self._given_up = self._counter("cancelled", "Replies that their reader left", "phase")
        self._first = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Until the first piece of a reply", ["gen_ai_request_model"],
            registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._each = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Between two tokens of a reply", ["gen_ai_request_model"],
            registry=self._registry, buckets=_TOKEN_SECONDS,
        )  # fmt: skip
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts", "model")
        self._cached = self._counter("cached_prompt_tokens", "Tokens of prompts that were not computed again", "model")
        self._output = self._counter("output_tokens", "Tokens of replies", "model")
        self._drafted = self._counter("drafted_tokens", "Tokens that were guessed and read ahead", "model")
        self._accepted = self._counter("accepted_draft_tokens", "Guessed tokens that were right", "model")
        self._truncated = self._counter("truncations", "Prompts that were cut to fit", "model")
        self._finished = self._counter("replies", "Replies by the reason of their end", "model", "reason")
        self._load = self._histogram("model_load_seconds", "What replies waited for their model", _SECONDS, "model")
        self._queue = self._gauge("queue_depth", "Requests now, by what they wait for", "state")
        self._oldest = self._gauge("queue_oldest_seconds", "Age of the oldest request that waits")
        self._in_flight = self._gauge("requests_in_flight", "Requests that are being answered")
        self._loaded = self._gauge("models_loaded", "Models in memory")
        self._memory = self._gauge("model_bytes", "Memory of a loaded model", "model", "device")
        self._engine = self._gauge("engine", "The engine's own figures of a loaded model", "model", "figure")
        self._store = self._gauge("store_bytes", "Bytes of the model store", "kind")
        self._free = self._gauge("disk_free_bytes", "Bytes that the disk of the store has left")
        self._process = self._gauge("process_memory_bytes", "Memory of the server itself, swapped out or not")
        self._files = self._gauge("process_open_files", "Open file descriptors of the server")
        self._threads = self._gauge("process_threads", "Threads of the server")
        self._late = self._histogram("event_loop_lag_seconds", "How late timers are", _TOKEN_SECONDS)

    # What happens

    def request(self, route: str, model: str, code: int, seconds: float) -> None:
        """A request was answered. ``model`` only counts where the answer shows that there is such a model."""
        self._requests.labels(route, self._bounded(model) if model and code < 400 else "", str(code)).inc()
        self._seconds.labels(route).observe(seconds)
        if code == 503:
            self._rejected.inc()

    def first_token(self, model: str, seconds: float) -> None:
        self._first.labels(self._bounded(model)).observe(seconds)

    def done(self, model: str, reason: str, stats: Stats) -> None:
        label = self._bounded(model)
        self._finished.labels(label, reason).inc()
        self._prompt.labels(label).inc(stats.prompt_tokens)
        self._cached.labels(label).inc(stats.cached_tokens)
        self._output.labels(label).inc(stats.output_tokens)
        self._drafted.labels(label).inc(stats.drafted_tokens)
        self._accepted.labels(label).inc(stats.accepted_tokens)
        if stats.load_seconds > 0:
            self._load.labels(label).observe(stats.load_seconds)
        if stats.output_tokens > 1:
            self._each.labels(label).observe(stats.output_seconds / stats.output_tokens)
        if stats.messages_dropped or stats.prompt_tokens_dropped:
            self._truncated.labels(label).inc()

    def given_up(self, phase: str) -> None:
        self._given_up.labels(phase).inc()

    # What is asked for

    async def text(
        self,
        *,
        busy: int,
        queue: Sequence[QueueEntry],
        running: Sequence[Running],
        engines: Sequence[tuple[str, Mapping[str, Any]]],
        store: Store,
    ) -> bytes:
        """Everything now, in Prometheus' text format. ``engines``: counters by the names of loaded models."""
        self._watch_lag()
        self._in_flight.set(busy)
        self._show_queue(queue)
        self._loaded.set(len(running))
        self._memory.clear()
        for loaded in running:
            label = self._bounded(loaded.model.name.short)
            self._memory.labels(label, "gpu").set(loaded.size_vram)
            self._memory.labels(label, "cpu").set(loaded.size - loaded.size_vram)
        self._engine.clear()
        for model, counters in engines:
            for figure, number in counters.items():
                if figure != "pid" and isinstance(number, int | float):
                    self._engine.labels(self._bounded(model), figure).set(number)
        await asyncio.to_thread(self._measure, store)
        return generate_latest(self._registry)

    async def close(self) -> None:
        if self._lag is not None:
            self._lag.cancel()
            await asyncio.wait({self._lag})

    def _show_queue(self, queue: Sequence[QueueEntry]) -> None:
        for state in STATES:
            self._queue.labels(state).set(sum(entry.state == state for entry in queue))
        waiting = [entry.created_at for entry in queue if entry.state == QUEUED]
        self._oldest.set(time.time() - min(waiting) if waiting else 0)

    def _measure(self, store: Store) -> None:
        now = time.monotonic()
        if now - self._looked > STORE_SECONDS or not self._looked:
            self._looked = now
            with contextlib.suppress(OllamaError, OSError):
                self._usage = usage(store)
        if found := self._usage:
            for kind, totals in (("used", found.blobs), ("unused", found.unused), ("partial", found.partial)):
                self._store.labels(kind).set(totals.bytes)
            self._free.set(found.free)
        status = _status()
        self._process.set((status.get("RssAnon", 0) + status.get("VmSwap", 0)) * 1024)
        self._threads.set(status.get("Threads", 0))
        with contextlib.suppress(OSError):
            self._files.set(len(os.listdir("/proc/self/fd")))  # noqa: PTH208

    def _watch_lag(self) -> None:
        """From the first scrape on: who never asks pays nothing."""
        if self._lag is None:
            self._lag = asyncio.ensure_future(self._measure_lag())

    async def _measure_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._late.observe(max(0.0, time.monotonic() - due))

    def _bounded(self, model: str) -> str:
        """A model's label: its name with its tag, however it was written."""
        try:
            model = ModelName.parse(model).short
        except OllamaError:
            return "other"
        if model in self._models:
            return model
        if len(self._models) >= MOST_MODELS:
            return "other"
        self._models.add(model)
        return model

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ollama_nb_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"ollama_nb_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"ollama_nb_{name}", text, labels, registry=self._registry, buckets=buckets)


def _status() -> dict[str, int]:
    """The numbers of ``/proc/self/status``; none on other systems than Linux."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            first = value.split()[:1]
            if first and first[0].isdigit():
                found[key] = int(first[0])
    return found
