"""A running server asked over plain HTTP: blobs, models made of them, greedy replies."""

from __future__ import annotations

import hashlib
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.servers import RunningServer


class Answers:
    """Asks ``server``; every method fails the test when the answer is not the one that it expects."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.models: Path = server.models
        self.pid = server.pid

    def request(self, method: str, path: str, body: bytes) -> tuple[int, list[dict[str, Any]]]:
        """Status and lines."""
        connection = http.client.HTTPConnection(urlsplit(self._server.url).netloc, timeout=150)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **self._server.headers})
            reply = connection.getresponse()
            return reply.status, [json.loads(line) for line in reply.read().splitlines() if line.strip()]
        finally:
            connection.close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The last line of an answer that succeeds."""
        status, lines = self.request("POST", path, json.dumps(body).encode())
        assert status == 200, lines
        return lines[-1]

    def add_blob(self, data: bytes) -> str:
        """Its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        status, _ = self.request("POST", f"/api/blobs/{digest}", data)
        assert status in (200, 201)
        return digest

    def create(self, model: str, **fields: Any) -> str:
        """The last status, or the error."""
        line = self.post("/api/create", {"model": model, **fields})
        return str(line.get("status", line))

    def generate(self, model: str, prompt: str, **options: Any) -> str:
        """A reply to a raw prompt, greedy unless told otherwise."""
        return str(self.post("/api/generate", _generation(model, prompt, options))["response"])

    def fail(self, model: str, prompt: str, **options: Any) -> tuple[int, str]:
        """Status and text of the error that a prompt leads to."""
        status, lines = self.request("POST", "/api/generate", json.dumps(_generation(model, prompt, options)).encode())
        assert "error" in lines[-1], lines
        return status, str(lines[-1]["error"])


def _generation(model: str, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    chosen = {"temperature": 0, "num_predict": 60, "num_thread": 1, **options}
    return {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": chosen}
