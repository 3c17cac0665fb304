"""What the tests of other clients share: a server with its key, and questions with known answers.

The bundled model answers these correctly at temperature 0, so that a wrong answer is a defect of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.servers import RunningServer


@dataclass(frozen=True)
class Host:
    """A server's base address, the key that it requires, and that key as a header."""

    url: str
    key: str
    server: RunningServer

    @property
    def openai(self) -> str:
        """The base address that OpenAI's clients are given."""
        return f"{self.url}/v1"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
CHINA = "中国的首都是哪里？"
WEATHER_QUESTION = "What is the weather in Paris?"
ONCE = "Once upon a time"

CITY: dict[str, Any] = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "get_weather", "description": "Get the current weather in a city"}
WEATHER_TOOL: dict[str, Any] = {"type": "function", "function": {**WEATHER, "parameters": CITY}}
"""In the form of OpenAI's chat completions, which Ollama shares."""
