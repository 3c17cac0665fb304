"""Misspelt fields inside the objects of a request: a warning in the reply, an error when the request is strict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clients import create_model
from support.servers import standalone

pytestmark = pytest.mark.model
STRICT = {"X-Ollama-Strict": "true"}
EMPTY = "the message is empty: it has no content, images or tool calls"
HI = {"role": "user", "content": "Once"}
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("/api/chat",
     {"stream": False, "options": {"num_predict": 3},
      "messages": [{"role": "system", "message": "Say 7"}, {"role": "user", "text": "say what"}]},
     [f"messages[0]: {EMPTY}", 'messages[0]: ignored field "message", did you mean "content"?',
      f"messages[1]: {EMPTY}", 'messages[1]: ignored field "text", did you mean "content"?']),
    ("/v1/chat/completions",
     {"max_tokens": 3, "messages": [HI],
      "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}, "shcema": {}}}},
     ['response_format.json_schema: ignored field "shcema", did you mean "schema"?']),
    ("/v1/messages",
     {"max_tokens": 3, "messages": [{"role": "user", "content": [{"type": "text", "text": "Once", "txet": "x"}]}]},
     ['messages[0].content[0]: ignored field "txet", did you mean "text"?']),
]  # fmt: skip


def test_misspelt_fields_are_reported_or_refused(tmp_path: Path, models: Path) -> None:
    with (
        standalone(tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http,
    ):
        create_model(http, "m", (models / "stories260K-q4_0.gguf").read_bytes())
        for path, body, warnings in CASES:
            reply = http.post(path, json={"model": "m", **body})
            assert (reply.status_code, reply.json().get("warnings")) == (200, warnings), path
            strict = http.post(path, json={"model": "m", **body}, headers=STRICT)
            assert strict.status_code == 400, path
            error = strict.json()["error"]
            text = error if isinstance(error, str) else error["message"]
            assert warnings[0] in text, path
