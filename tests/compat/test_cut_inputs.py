"""Inputs and prompts that are longer than the model reads: reported, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clients import create_model, post
from support.servers import standalone
from support.service_harness import PLAIN

pytestmark = pytest.mark.model
STRICT = {"X-Ollama-Strict": "true"}
OLD = [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "b"}]
PROMPTS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "raw": ("/api/generate", lambda text: {"model": "tales", "prompt": text, "raw": True}),
    "generate": ("/api/generate", lambda text: {"model": "plain", "prompt": text}),
    "one message": ("/api/chat", lambda text: {"model": "tales", "messages": [{"role": "user", "content": text}]}),
    "one message, Go": ("/api/chat", lambda text: {"model": "plain", "messages": [{"role": "user", "content": text}]}),
    "three": ("/api/chat", lambda text: {"model": "tales", "messages": [*OLD, {"role": "user", "content": text}]}),
    "three, Go": ("/api/chat", lambda text: {"model": "plain", "messages": [*OLD, {"role": "user", "content": text}]}),
}
"""A path, and a body whose prompt gets one token longer with each " a" of the text."""


def test_cut_inputs_are_reported(tmp_path: Path, models: Path) -> None:
    """G17: the lengths around the limit, with the model's own limit and with that of num_ctx."""
    with (
        standalone(tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http,
    ):
        create_model(http, "minilm", (models / "all-MiniLM-L6-v2-q8_0.gguf").read_bytes())
        for num_ctx, limit in ((None, 512), (100, 100)):
            body = {"model": "minilm", "options": {} if num_ctx is None else {"num_ctx": num_ctx}}
            for length in range(limit - 2, limit + 3):
                inputs = ["a", "cat " * (length - 2)]  # and [CLS] and [SEP]
                reply = http.post("/api/embed", json={**body, "input": inputs}).json()
                strict = http.post("/api/embed", json={**body, "input": inputs}, headers=STRICT)
                allowed = http.post("/api/embed", json={**body, "input": inputs, "truncate": True}, headers=STRICT)
                assert allowed.status_code == 200
                refused = http.post("/api/embed", json={**body, "input": inputs, "truncate": False})
                if length <= limit:
                    assert "truncated" not in reply and "warnings" not in reply
                    assert strict.status_code == refused.status_code == 200
                    continue
                assert reply["truncated"] == {"inputs": [1]}
                (warning,) = reply["warnings"]
                assert warning.startswith(f"input 1: only the first {limit} tokens were used; ")
                assert ("num_ctx" in warning) == (num_ctx is not None), "named only where it helps"
                assert (strict.status_code, strict.json()["error"]) == (400, warning)
                assert refused.status_code == 400
        long = "cat " * 600
        openai = http.post("/v1/embeddings", json={"model": "minilm", "input": ["a", long]}).json()
        assert [text[:7] for text in openai["warnings"]] == ["input 1"]
        rerank = {"model": "minilm", "query": "a cat", "documents": ["a dog", long]}
        assert len(http.post("/api/rerank", json=rerank).json()["warnings"]) == 1
        assert http.post("/api/rerank", json=rerank, headers=STRICT).status_code == 400
        for length in range(510, 515):
            rerank = {"model": "minilm", "query": "a", "documents": ["b", "cat " * (length - 2)]}
            reply = http.post("/api/rerank", json={**rerank, "truncate": True}, headers=STRICT).json()
            assert reply.get("truncated") == ({"documents": [1]} if length > 512 else None)
            refused = http.post("/api/rerank", json={**rerank, "truncate": False})
            assert refused.status_code == (400 if length > 512 else 200)


@pytest.mark.parametrize("kind", PROMPTS)
def test_cut_prompts_are_reported(kind: str, tales: httpx.Client) -> None:
    """G17: prompts around the limit, which leaves one token of the context for the reply."""
    path, body = PROMPTS[kind]
    own: dict[str, Any] = {"shift": False} if path == "/api/generate" else {"truncate": "messages"}
    ways: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({}, {}), ({"stream": True}, {}), ({}, STRICT), ({"truncate": False}, {}), (own, {}),
    ]  # fmt: skip
    for num_ctx in (None, 100):
        options = {"num_predict": 1} if num_ctx is None else {"num_predict": 1, "num_ctx": num_ctx}

        def ask(
            words: int, more: dict[str, Any], headers: dict[str, str], options: Any = options
        ) -> tuple[int, dict[str, Any]]:
            sent = {**body("I" + " a" * words), "options": options, "stream": False, **more}
            reply = tales.post(path, json=sent, headers=headers)
            return reply.status_code, json.loads(reply.text.splitlines()[-1])

        around = ask(0, {}, {})[1]["prompt_eval_count"]
        limit = (num_ctx or 512) - 1
        for length in range(limit - 2, limit + 3):
            for more, headers in ways:
                status, reply = ask(length - around, more, headers)
                if length <= limit:
                    assert (status, reply["prompt_eval_count"]) == (200, length), more
                    assert "truncated" not in reply and "warnings" not in reply, more
                elif status == 200 and False not in more.values():
                    assert reply["truncated"]["prompt_tokens_dropped"] > 0, more
                    assert reply["prompt_eval_count"] <= limit, more
                else:
                    assert (status, reply["code"]) == (400, "context_overflow"), more


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[httpx.Client]:
    """A server with the model tales, whose context has 512 tokens, and with the same one with a Go template: plain."""
    with (
        standalone(tmp_path_factory.mktemp("tales")) as server,
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http,
    ):
        create_model(http, "tales", (models / "stories260K-q4_0.gguf").read_bytes())
        post(http, "/api/create", model="plain", template=PLAIN, **{"from": "tales"})
        yield http
