"""A service over a real store in a temporary folder, with a scripted pool and an in-process renderer.

Covers every path of the service without a model or a child process. One word is one token.
``pool.script(prompt, format)`` returns the pieces of a reply; the last one may be an exception to raise or an
``asyncio.Event`` to wait for. A ``wire.TextOutput`` is sent as it is, with the number of tokens until then. Prompts are
rendered by the real templates.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np
from tornado import netutil

from ollama_nb import families
from ollama_nb.api.events import Delta, Done, Event, ToolCalls
from ollama_nb.api.models import GGUF, Model, Running
from ollama_nb.api.options import Options
from ollama_nb.api.requests import CreateRequest, PromptJob
from ollama_nb.errors import BadRequest
from ollama_nb.runner import wire
from ollama_nb.server.access import Keys
from ollama_nb.server.standalone import listen
from ollama_nb.server.state import ServerState
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings
from ollama_nb.store.assemble import assemble
from ollama_nb.template import prompt as templates

Piece = str | tuple[str, tuple[wire.TokenProb, ...]] | wire.TextOutput | asyncio.Event | Exception
Script = Callable[[str, str], Sequence[Piece]]


class FakeRenderer:
    def __init__(self) -> None:
        self.jobs: list[PromptJob] = []
        self.closed = False

    async def render(self, job: PromptJob) -> tuple[str, ...]:
        self.jobs.append(job)
        return templates.render(job, families.render)

    async def close(self) -> None:
        self.closed = True


class FakeRunner:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.asks: list[dict[str, Any]] = []
        self.counted: list[tuple[str, ...]] = []
        self.tokenized: tuple[tuple[str, ...], bool, bool] | None = None
        self.cancelled = 0
        self.waiting = asyncio.Event()
        self.loaded = wire.EngineFacts(
            n_ctx=4096, n_ctx_train=4096, n_seq=1, n_vocab=100, n_embd=4, size=10, size_vram=0, add_bos=True,
            add_eos=False, bos="<s>", eos="</s>", pooling="mean", load_seconds=0.5, build="fake",
        )  # fmt: skip

    async def complete(self, request: wire.CompletionRequest) -> AsyncIterator[wire.TextOutput | wire.Finished]:
        ask = msgspec.structs.asdict(request)
        self.asks.append(ask)
        reason, count, finished = "stop", 0, False
        drafts = (0, 0)
        prompt_tokens = len(ask["tokens"]) or len(ask["prompt"].split())
        try:
            for piece in self.script(ask["prompt"], ask["format"]):
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, asyncio.Event):
                    self.waiting.set()
                    await piece.wait()
                    continue
                if isinstance(piece, wire.TextOutput):
                    count, drafts = count + 1, (piece.drafted, piece.accepted)
                    yield msgspec.structs.replace(piece, output_tokens=count)
                    continue
                text, probs = piece if isinstance(piece, tuple) else (piece, ())
                if text == "<length>":
                    reason = "length"
                    break
                count += 1
                await asyncio.sleep(0)
                yield wire.TextOutput(1, text, probs, prompt_tokens if count == 1 else 0, output_tokens=count)
            finished = True
            yield wire.Finished(
                id=1, reason=reason, prompt_tokens=prompt_tokens, cached_tokens=1, prompt_seconds=0.25,
                output_tokens=count, output_seconds=0.5, drafted=drafts[0], accepted=drafts[1],
                tokens=(7, 8, 9) if ask["return_tokens"] else (),
            )  # fmt: skip
        finally:
            self.cancelled += not finished

    async def count_tokens(self, texts: Sequence[str], **_: bool) -> tuple[int, ...]:
        self.counted.append(tuple(texts))
        return tuple(len(text.split()) for text in texts)

    alive = True

    async def tokenize(
        self, texts: Sequence[str], *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[tuple[int, ...], ...]:
        self.tokenized = (tuple(texts), add_special, parse_special)
        return tuple(tuple(range(len(text.split()))) for text in texts)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)

    async def rank(self, query: str, documents: Sequence[str], *, num_ctx: int = 0, **_: object) -> wire.Ranked:
        return wire.Ranked(1, tuple(len(text) / 10 for text in documents), len(query.split()))

    async def embed(
        self, inputs: Sequence[str], *, truncate: bool = True, num_ctx: int = 0, **_: object
    ) -> wire.Embedded:
        if not truncate and any(len(text.split()) > num_ctx for text in inputs):
            raise BadRequest("the input length exceeds the context length")
        rows = np.array([[3.0, 4.0, len(text), 0.1] for text in inputs], dtype="<f4")
        return wire.Embedded(
            1, rows.tobytes(), 4, sum(len(text.split() if isinstance(text, str) else text) for text in inputs), 0.25
        )


class FakeLease:
    def __init__(self, pool: FakePool, num_ctx: int) -> None:
        self._pool, self.runner, self.num_ctx = pool, pool.runner, num_ctx
        self.loaded, self.adapters = pool.runner.loaded, ()

    async def __aenter__(self) -> FakeLease:
        self._pool.leases += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.leases -= 1


class FakePool:
    """``asked`` is set by the first request for a model. Loads wait for ``gate`` and raise ``error``."""

    def __init__(self, script: Script = lambda prompt, format: ("Hello", " there")) -> None:
        self.runner = FakeRunner(script)
        self.leases = 0
        self.acquired: list[tuple[Model, Options, float | None]] = []
        self.unloaded: list[str] = []
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def acquire(self, model: Model, gguf: GGUF, options: Options, keep_alive: float | None = None) -> FakeLease:
        assert isinstance(gguf, GGUF)
        self.acquired.append((model, options, keep_alive))
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return FakeLease(self, min(options.num_ctx or 4096, 4096))

    def loaded(self, model: Model) -> FakeRunner:
        return self.runner

    def running(self) -> list[Running]:
        return []

    async def unload(self, model: Model) -> bool:
        self.unloaded.append(model.name.short)
        return True

    async def stats(self) -> list[tuple[Model, dict[str, Any]]]:
        return []

    async def close(self) -> None:
        assert self.leases == 0


MODELS = Path(__file__).parent.parent / "models"
T = TypeVar("T")

BAD_NAME = 'invalid model name: a b (the model part may hold only A-Z, a-z, 0-9, "_", "-" and ".", not " ")'
PLAIN = "{{ range .Messages }}<{{ .Role }}> {{ .Content }} {{ end }}<assistant>"
THINKS = (
    "{{ range .Messages }}<{{ .Role }}> "
    "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }} {{ end }}"
    "{{ if and .IsThinkSet .Think }}<think>{{ end }}"
)
TOOLS = (
    "{{ if .Tools }}{{ .Tools }} {{ end }}{{ range .Messages }}<{{ .Role }}> {{ .Content }}"
    "{{ if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{{ .Function.Name }}{{ end }}</tool_call>{{ end }} {{ end }}"
)
INSERTS = "{{ if .Suffix }}<pre> {{ .Prompt }} <suf> {{ .Suffix }} <mid>{{ else }}{{ .Prompt }}{{ end }}"
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class ServiceHarness:
    def __init__(self, folder: Path, script: Script | None = None, **settings: Any) -> None:
        self.pool = FakePool(script) if script else FakePool()
        self.renderer = FakeRenderer()
        self.settings = Settings(models=folder / "models", home=folder / "nb", **settings)
        self.service = Service(self.settings, pool=self.pool, renderer=self.renderer)  # type: ignore[arg-type]

    @property
    def asks(self) -> list[dict[str, Any]]:
        """The arguments of the runner's completions."""
        return self.pool.runner.asks

    def make(self, name: str, gguf: str = "stories260K-q4_0.gguf", **parts: Any) -> None:
        """Put a model into the store."""
        digest = self.service.blobs.add_file(MODELS / gguf)
        request = CreateRequest(model=name, **parts)
        assemble(self.service.store, request, base=None, files={gguf: digest}, report=lambda line: None)


@contextlib.asynccontextmanager
async def serve_harness(harness: ServiceHarness) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with the harness's service."""
    state = ServerState(harness.service)
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server = listen(state, sockets, keys=Keys())
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            yield client
    finally:
        server.stop()
        await state.drain(0)
        await server.close_all_connections()
        await harness.service.close()


async def collect(events: AsyncIterator[T]) -> list[T]:
    return [event async for event in events]


def content(events: list[Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, Delta))


def thinking(events: list[Event]) -> str:
    return "".join(event.thinking for event in events if isinstance(event, Delta))


def calls(events: list[Event]) -> list[str]:
    return [call.name for event in events if isinstance(event, ToolCalls) for call in event.calls]


def done(events: list[Event]) -> Done:
    assert isinstance(events[-1], Done)
    assert not any(isinstance(event, Done) for event in events[:-1])
    return events[-1]
