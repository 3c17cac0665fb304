"""A reply that is cut within a character ends with the character before it, in every dialect and in streams.

The vocabulary of stories260K writes these characters as one token for each of their seven bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clients import create_model
from support.servers import standalone

pytestmark = pytest.mark.model
TEXT = "😀好"
USER = [{"role": "user", "content": "Hello"}]


def content(path: str, entry: dict[str, Any]) -> str:
    """The text of one object of a reply, whole or in a stream."""
    if path == "/api/generate":
        return entry["response"]
    if path == "/api/chat":
        return entry["message"]["content"]
    if path == "/v1/completions":
        return entry["choices"][0]["text"] if entry["choices"] else ""
    (choice,) = entry["choices"] or [{"delta": {}}]
    return choice.get("delta", choice.get("message", {})).get("content") or ""


def bodies(path: str, length: int) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "stories", "choices": [TEXT], "temperature": 0}
    if path.startswith("/api/"):
        body |= {"options": {"num_predict": length, "temperature": 0}}
    else:
        body |= {"max_tokens": length}
    return body | ({"prompt": "Hello"} if path in ("/api/generate", "/v1/completions") else {"messages": USER})


def text_of(http: httpx.Client, path: str, body: dict[str, Any]) -> str:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    if not body["stream"]:
        return content(path, reply.json())
    lines = (line.removeprefix("data: ") for line in reply.text.splitlines())
    return "".join(content(path, json.loads(line)) for line in lines if line.startswith("{"))


def test_an_incomplete_character_is_left_out(tmp_path: Path, models: Path) -> None:
    with (
        standalone(tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http,
    ):
        create_model(http, "stories", (models / "stories260K-f32.gguf").read_bytes())
        for path in ("/api/generate", "/api/chat", "/v1/completions", "/v1/chat/completions"):
            for stream in (False, True):
                found = [text_of(http, path, {**bodies(path, length), "stream": stream}) for length in range(1, 9)]
                assert found == [TEXT.encode()[:length].decode(errors="ignore") for length in range(1, 9)], path
