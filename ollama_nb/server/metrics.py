"""``GET /metrics``: metrics in Prometheus' text format, in a registry of their own for each server.

Labels are bounded: the first ``MAX_MODELS`` model names, then ``other``; no prompts, keys or paths. Latencies have the
names of OpenTelemetry's conventions for generative AI, all other metrics begin with ``ollama_nb_``.
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
from ollama_nb.service.batch_store import BatchStore
from ollama_nb.service.requests import QUEUED, STATES, QueueEntry
from ollama_nb.store.store import Store
from ollama_nb.store.usage import Usage, usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
MAX_MODELS = 50  # model names that get labels of their own
LAG_SECONDS = 0.5  # between two measurements of the event loop's lag
STORE_SECONDS = 15.0  # for which the sizes of the store are cached: reading them looks at every blob

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """All metrics of one server. Its methods run in the server's event loop."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._models: set[str] = set()
        self._lag: asyncio.Task[None] | None = None
        self._looked = 0.0
        self._usage: Usage | None = None
        self._requests = self._counter("requests", "Requests by route, model and status code", "route", "model", "code")
        self._seconds = self._histogram("request_duration_seconds", "Duration of requests", _SECONDS, "route")
        self._rejected = self._counter(
            "rejected", "Requests refused because the queue is full or the server shuts down"
        )
        self._given_up = self._counter("cancelled", "Replies that the client cancelled, by phase", "phase")
        self._first = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Time to the first token of a reply", ["gen_ai_request_model"],
            registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._each = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Time per output token of a reply", ["gen_ai_request_model"],
            registry=self._registry, buckets=_TOKEN_SECONDS,
        )  # fmt: skip
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts", "model")
        self._cached = self._counter("cached_prompt_tokens", "Prompt tokens found in the prefix cache", "model")
        self._output = self._counter("output_tokens", "Tokens of replies", "model")
        self._drafted = self._counter("drafted_tokens", "Tokens proposed by speculative decoding", "model")
        self._accepted = self._counter("accepted_draft_tokens", "Draft tokens that the model verified", "model")
        self._truncated = self._counter("truncations", "Prompts that were truncated to fit into the context", "model")
        self._finished = self._counter("replies", "Replies by finish reason", "model", "reason")
        self._load = self._histogram(
            "model_load_seconds", "Time that requests waited for their model to load", _SECONDS, "model"
        )
        self._queue = self._gauge("queue_depth", "Requests by state", "state")
        self._oldest = self._gauge("queue_oldest_seconds", "Age of the oldest waiting request")
        self._batches = self._gauge("batches_unfinished", "Batches that have not ended")
        self._in_flight = self._gauge("requests_in_flight", "Requests in flight")
        self._loaded = self._gauge("models_loaded", "Loaded models")
        self._memory = self._gauge("model_bytes", "Memory of a loaded model", "model", "device")
        self._engine = self._gauge("engine", "The engine's counters of a loaded model", "model", "figure")
        self._store = self._gauge("store_bytes", "Bytes of the model store", "kind")
        self._free = self._gauge("disk_free_bytes", "Free bytes on the disk of the model store")
        self._process = self._gauge("process_memory_bytes", "Memory of the server process, including swap")
        self._files = self._gauge("process_open_files", "Open file descriptors of the server")
        self._threads = self._gauge("process_threads", "Threads of the server")
        self._late = self._histogram("event_loop_lag_seconds", "Delay of timers in the event loop", _TOKEN_SECONDS)

    # Events

    def request(self, route: str, model: str, code: int, seconds: float) -> None:
        """Count a request. ``model`` is used for successful requests only, so that labels name existing models."""
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

    # Output

    async def text(
        self,
        *,
        busy: int,
        queue: Sequence[QueueEntry],
        running: Sequence[Running],
        engines: Sequence[tuple[str, Mapping[str, Any]]],
        store: Store,
        batches: BatchStore,
    ) -> bytes:
        """The present values in Prometheus' text format. ``engines`` are the counters of each loaded model."""
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
        await asyncio.to_thread(self._measure, store, batches)
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

    def _measure(self, store: Store, batches: BatchStore) -> None:
        with contextlib.suppress(OllamaError):
            self._batches.set(len(batches.unfinished()))
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
        """Measure the lag from the first request for metrics on, so that it costs nothing without a scraper."""
        if self._lag is None:
            self._lag = asyncio.ensure_future(self._measure_lag())

    async def _measure_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._late.observe(max(0.0, time.monotonic() - due))

    def _bounded(self, model: str) -> str:
        """The label of a model: its short name with the tag, for every spelling."""
        try:
            model = ModelName.parse(model).short
        except OllamaError:
            return "other"
        if model in self._models:
            return model
        if len(self._models) >= MAX_MODELS:
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
    """The numbers in ``/proc/self/status``; empty on systems other than Linux."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            first = value.split()[:1]
            if first and first[0].isdigit():
                found[key] = int(first[0])
    return found
