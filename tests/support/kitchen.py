"""A service over a real store in a temporary folder, with a scripted pool, and small real models to order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

from support.fake_pool import FakePool, FakeRenderer, Script

from ollama_nb.api.chat import CreateRequest
from ollama_nb.api.events import Delta, Done, Event, ToolCalls
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings
from ollama_nb.store.assemble import assemble

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


class Kitchen:
    def __init__(self, folder: Path, script: Script | None = None, **settings: Any) -> None:
        self.pool = FakePool(script) if script else FakePool()
        self.renderer = FakeRenderer()
        self.settings = Settings(models=folder / "models", home=folder / "nb", **settings)
        self.service = Service(self.settings, pool=self.pool, renderer=self.renderer)  # type: ignore[arg-type]

    @property
    def asks(self) -> list[dict[str, Any]]:
        """What the runner was asked to complete."""
        return self.pool.runner.asks

    def make(self, name: str, gguf: str = "stories260K-q4_0.gguf", **parts: Any) -> None:
        """Put a model into the store."""
        digest = self.service.blobs.add_file(MODELS / gguf)
        request = CreateRequest(model=name, **parts)
        assemble(self.service.store, request, base=None, files={gguf: digest}, report=lambda line: None)


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
