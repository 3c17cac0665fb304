"""A client with scripted replies that records the requests of the magics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ollama_nb.errors import ModelNotFound

Reply = list[Any]
"""The objects of a stream in order; an exception among them is raised at its position."""


class ScriptedClient:
    """Answers every chat and generate with the next reply of ``replies``."""

    url, key = "http://127.0.0.1:4242/base/ollama", "secret-key"

    def __init__(self, *replies: Reply, models: tuple[str, ...] = ("smollm2:latest", "sprout:latest")) -> None:
        self.replies, self.models = list(replies), models
        self.asked: list[dict[str, Any]] = []
        self.uploaded: dict[str, bytes] = {}
        self.closed = 0
        self.before_chunk: Callable[[], None] = lambda: None

    def _stream(self, request: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
        self.asked.append(request)
        try:
            for chunk in self.replies.pop(0):
                self.before_chunk()
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            self.closed += 1

    def chat(self, model: str, messages: Any, *, stream: bool = False, **fields: Any) -> Any:
        return self._stream({"model": model, "messages": messages, **fields})

    def generate(self, model: str, prompt: str = "", *, stream: bool = False, **fields: Any) -> Any:
        request = {"model": model, "prompt": prompt, **fields}
        if stream:
            return self._stream(request)
        self.asked.append(request)
        return {"done": True}

    def show(self, model: str) -> dict[str, Any]:
        if f"{model}:latest" not in self.models:
            raise ModelNotFound(f"model '{model}' not found")
        return {}

    def delete(self, model: str) -> None:
        self.asked.append({"delete": model})

    def create(self, model: str, **fields: Any) -> Any:
        return contextlib.closing(self._stream({"model": model, **fields}))

    def has_blob(self, digest: str) -> bool:
        return digest in self.uploaded

    def upload_blob(self, digest: str, file: Any, size: int) -> None:
        self.uploaded[digest] = file.read(size)

    def pull(self, model: str, **fields: Any) -> Any:
        return self._stream({"model": model, **fields})

    def list(self) -> dict[str, Any]:
        self.asked.append({"list": True})
        return {
            "models": [
                {
                    "name": name,
                    "size": 98_000_000,
                    "digest": "0123456789abcdef" * 4,
                    "modified_at": "2020-01-01T00:00:00Z",
                }
                for name in self.models
            ]
        }


def chat_reply(*pieces: str, thinking: str = "", reason: str = "stop", **final: Any) -> Reply:
    """A chat stream of these pieces."""
    thoughts = [{"message": {"role": "assistant", "content": "", "thinking": thinking}, "done": False}]
    return [
        *(thoughts if thinking else []),
        *({"message": {"role": "assistant", "content": piece}, "done": False} for piece in pieces),
        {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason, **FIGURES, **final},
    ]


def generate_reply(*pieces: str, reason: str = "stop", **final: Any) -> Reply:
    return [
        *({"response": piece, "done": False} for piece in pieces),
        {"response": "", "done": True, "done_reason": reason, **FIGURES, **final},
    ]


FIGURES = {"eval_count": 20, "eval_duration": 500_000_000, "prompt_eval_count": 7, "total_duration": 900_000_000}
