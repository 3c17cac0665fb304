"""A server whose one model says a function of what it is asked, and counts its questions: for work over many rows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from support.scripted_server import Answer, ScriptedServer, Seen, error, ok

MODEL = "echo"


class EchoServer(ScriptedServer):
    """``say``: a question's text → its answer, or a whole Answer such as an error. ``before`` is called first."""

    def __init__(self, say: Callable[[str], str | Answer] = str.upper) -> None:
        super().__init__()
        self.say = say
        self.before: Callable[[str], object] = lambda text: None
        self.questions: Counter[str] = Counter()
        self.digest = "0123456789abcdef" * 4
        self.slots = 4
        self._lock = threading.Lock()
        self.routes |= {
            "GET /api/tags": lambda request: self._models(),
            "GET /api/ps": lambda request: self._models(slots=self.slots),
            "POST /api/show": error(404, "model not found"),
            "POST /api/generate": self._generate,
            "POST /api/chat": self._chat,
            "POST /api/embed": self._embed,
            "POST /api/rerank": self._rerank,
        }

    @property
    def asked_times(self) -> int:
        return self.questions.total()

    def _models(self, **more: Any) -> Answer:
        return ok({"models": [{"name": f"{MODEL}:latest", "digest": self.digest, **more}]})

    def _heard(self, text: str) -> str | Answer:
        with self._lock:
            self.questions[text] += 1
        self.before(text)
        return self.say(text)

    def _generate(self, request: Seen) -> Answer:
        prompt = request.json["prompt"]
        return _reply("response", self._heard(prompt)) if prompt else ok({"done": True, "done_reason": "load"})

    def _chat(self, request: Seen) -> Answer:
        said = self._heard(request.json["messages"][-1]["content"])
        return _reply("message", said)

    def _embed(self, request: Seen) -> Answer:
        texts = request.json["input"]
        said = [self._heard(text) for text in texts]
        wrong = [found for found in said if isinstance(found, Answer)]
        return wrong[0] if wrong else ok({"embeddings": [vector(text) for text in texts]})

    def _rerank(self, request: Seen) -> Answer:
        body = request.json
        results = [{"index": at, "relevance_score": score(text)} for at, text in enumerate(body["documents"])]
        results.sort(key=lambda found: -found["relevance_score"])
        return ok({"results": results, "method": "rank"})


def vector(text: str) -> list[float]:
    """A unit vector: texts of the same letters point the same way."""
    counts = np.bincount([ord(letter) % 8 for letter in text] or [0], minlength=8).astype(np.float64)
    return [float(part) for part in counts / np.linalg.norm(counts)]


def score(text: str) -> float:
    return 1.0 / (1 + len(text))


def _reply(field: str, said: str | Answer) -> Answer:
    if isinstance(said, Answer):
        return said
    content: Any = {"role": "assistant", "content": said} if field == "message" else said
    return ok({field: content, "done": True, "done_reason": "stop", "eval_count": 1, "eval_duration": 1000})
