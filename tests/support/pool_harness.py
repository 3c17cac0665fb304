"""Parts for tests of the pool: models that are only names, a clock that is moved by hand, scripted runners."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ollama_nb.api.models import GGUF, Layer, Manifest, Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import OllamaError
from ollama_nb.runner import wire
from ollama_nb.runner.children import ProcessEnd
from ollama_nb.runner.placement import MachineMemory

MIB = 1 << 20


def a_model(name: str = "tiny", *, size: int = MIB, weights: bool = True) -> Model:
    digest = Digest("0" * 64)
    layers = (Layer("application/vnd.ollama.image.model", digest, size),)
    manifest = Manifest(Layer("application/vnd.docker.container.image.v1+json", digest, 2), layers)
    path = Path("/models") / name if weights else None
    return Model(ModelName.parse(name), "0" * 64, manifest, ModelConfig(), 0.0, size, weights=path)


def a_gguf(architecture: str = "llama", **facts: Any) -> GGUF:
    """A header with these keys of its architecture (``head_count`` for ``attention.head_count``)."""
    defaults: dict[str, Any] = {
        "context_length": 8192, "block_count": 10, "embedding_length": 512, "head_count": 8, "head_count_kv": 4,
    }  # fmt: skip
    attention = ("head_count", "head_count_kv", "key_length", "value_length", "causal")
    metadata = {
        f"{architecture}.{'attention.' if name in attention else ''}{name}": value
        for name, value in (defaults | facts).items()
        if value is not None
    }
    return GGUF(3, {"general.architecture": architecture, **metadata}, ())


class VirtualClock:
    """Time that only ``advance`` moves; it calls the timers that are due, in order."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> _Timer:
        number = next(self._numbers)
        heapq.heappush(self._timers, (when, number, callback))
        return _Timer(lambda: self._cancelled.add(number))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, number, callback = heapq.heappop(self._timers)
            if number not in self._cancelled:
                callback()
        self.now = end


class _Timer:
    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


class ScriptedRunner:
    """A loaded runner process; it ends on ``die``."""

    def __init__(self, load: wire.EngineConfig, pid: int) -> None:
        self.load = load
        self.pid = pid
        self.ended: asyncio.Future[ProcessEnd] = asyncio.get_running_loop().create_future()
        self.stopped = False
        self.loaded = wire.EngineFacts(
            n_ctx=load.n_ctx, n_ctx_train=0, n_seq=load.n_seq, n_vocab=1, n_embd=1, size=100 + pid, size_vram=0,
            add_bos=False, add_eos=False, bos="", eos="", pooling="none", load_seconds=0.0, build="scripted",
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    async def wait(self) -> ProcessEnd:
        return await asyncio.shield(self.ended)

    async def stop(self, grace: float = 1.0) -> None:
        self.stopped = True
        await asyncio.sleep(0)
        self.die("stopped")

    async def stats(self) -> dict[str, Any]:
        return {"pid": self.pid}

    def die(self, cause: str, *, killed: bool = False) -> None:
        if self.alive:
            self.ended.set_result(ProcessEnd(cause, killed))


class Launcher:
    """Loads models at once, or on ``finish`` if ``hold`` is set."""

    def __init__(self) -> None:
        self.hold = False
        self.error: OllamaError | None = None
        self.runners: list[ScriptedRunner] = []
        self.loads: list[str] = []
        self.cancelled: list[str] = []
        self._held: list[asyncio.Future[None]] = []

    @property
    def loading(self) -> int:
        return sum(not held.done() for held in self._held)

    async def __call__(self, load: wire.EngineConfig, timeout: float) -> ScriptedRunner:
        self.loads.append(Path(load.path).name)
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append(held)
        if not self.hold:
            held.set_result(None)
        try:
            await held
        except asyncio.CancelledError:
            self.cancelled.append(Path(load.path).name)
            raise
        if self.error is not None:
            raise self.error
        runner = ScriptedRunner(load, len(self.runners) + 1)
        self.runners.append(runner)
        return runner

    def finish(self) -> None:
        for held in self._held:
            if not held.done():
                held.set_result(None)


def plenty() -> MachineMemory:
    return MachineMemory(free_memory=1 << 40)
