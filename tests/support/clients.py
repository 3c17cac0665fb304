"""What the tests of other clients share: a server with its key, and questions with known answers.

The bundled model answers these correctly at temperature 0, so that a wrong answer is a defect of ours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Host:
    """A server's base address and its key, empty if it requires none."""

    url: str
    key: str

    @property
    def openai(self) -> str:
        """The base address that OpenAI's clients are given."""
        return f"{self.url}/v1"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def http(self) -> httpx.Client:
        """A plain HTTP client, with the key."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=300, trust_env=False)


def create_model(http: httpx.Client, name: str, data: bytes) -> None:
    """Create a model from a GGUF file."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    http.post(f"/api/blobs/{digest}", content=data).raise_for_status()
    post(http, "/api/create", model=name, files={f"{name}.gguf": digest})


def post(http: httpx.Client, path: str, **body: Any) -> None:
    """Send a request that must succeed."""
    reply = http.post(path, json={**body, "stream": False})
    assert reply.status_code == 200, reply.text


FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
CHINA = "中国的首都是哪里？"
WEATHER_QUESTION = "What is the weather in Paris?"
ONCE = "Once upon a time"

CITY: dict[str, Any] = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "get_weather", "description": "Get the current weather in a city"}
WEATHER_TOOL: dict[str, Any] = {"type": "function", "function": {**WEATHER, "parameters": CITY}}
"""In the form of OpenAI's chat completions, which Ollama shares."""
