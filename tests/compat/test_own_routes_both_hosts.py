"""Our additions to Ollama's API in both hosts, with real models in real runners."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.models import TinyRanker
from support.servers import RunningServer, jupyter, runtime_info, standalone

pytestmark = pytest.mark.model
ONCE = "Once upon a time"


@pytest.fixture(scope="module", params=["standalone", "jupyter"])
def http(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Any]:
    home = tmp_path_factory.mktemp(request.param)
    start = standalone(home) if request.param == "standalone" else jupyter(home, base_url="/hub/")
    with start as server:
        if request.param == "jupyter":
            server.headers = {"Authorization": f"Bearer {runtime_info(server)['key']}"}
        with client_of(server) as client:
            ranker = TinyRanker().write(home / "ranker.gguf")
            for name, file in (("stories", models / "stories260K-f32.gguf"), ("ranker", ranker)):
                create(client, name, file.read_bytes())
            yield client


def client_of(server: RunningServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers=server.headers, timeout=120, trust_env=False)


def create(client: httpx.Client, name: str, data: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert client.post(f"/api/blobs/{digest}", content=data).status_code in (200, 201)
    body = {"model": name, "files": {f"{name}.gguf": digest}, "stream": False}
    assert client.post("/api/create", json=body).json() == {"status": "success"}


def test_tokens_need_no_loaded_model(http: httpx.Client) -> None:
    body = {"model": "stories", "prompt": ONCE, "add_special": False}
    tokens = http.post("/api/tokenize", json=body).json()["tokens"]
    assert http.post("/api/detokenize", json={"model": "stories", "tokens": tokens}).json()["content"] == ONCE
    assert http.get("/api/ps").json() == {"models": []}
    assert http.post("/api/tokenize", json={"model": "no", "prompt": ""}).status_code == 404


def test_every_constraint(http: httpx.Client) -> None:
    for field, value, pattern in (
        ("grammar", 'root ::= "天"{2} [0-9]+ "."', r"天天\d+\."),
        ("regex", r"[a-f]{3}-\d", r"[a-f]{3}-\d"),
        ("choices", ["left", "right"], "left|right"),
        ("format", {"type": "boolean"}, "true|false"),
    ):
        body = {"model": "stories", "prompt": ONCE, "raw": True, "stream": False, field: value}
        reply = http.post("/api/generate", json={**body, "options": {"num_predict": 40, "temperature": 0.5}})
        found = reply.json()
        assert re.fullmatch(pattern, found["response"]) or found["done_reason"] == "length"
        wrong = http.post("/api/generate", json={**body, "regex": "a", "choices": ["a"]})
        assert wrong.status_code == 400 and "at most one of" in wrong.json()["error"]
    deep = {"model": "stories", "prompt": ONCE, "grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000}
    wrong = http.post("/api/generate", json=deep)
    assert wrong.status_code == 400 and "nested 64 levels" in wrong.json()["error"]


def test_strict_and_run_record(http: httpx.Client) -> None:
    body = {"model": "stories", "prompt": ONCE, "stream": False, "promt": 1, "options": {"num_predict": 8, "top": 1}}
    loose = http.post("/api/generate", json=body, headers={"X-Ollama-Run-Record": "true"}).json()
    assert loose["warnings"][0] == 'ignored field "promt", did you mean "prompt"?' and len(loose["warnings"]) == 2
    run = loose["run"]
    assert run["seed"] == run["options"]["seed"] and run["engine_build"].startswith("llama-cpp-python")
    again = {"model": "stories", "prompt": ONCE, "stream": False, "options": run["options"]}
    assert http.post("/api/generate", json=again).json()["response"] == loose["response"]
    strict = http.post("/api/generate", json=body, headers={"X-Ollama-Strict": "true"})
    assert strict.status_code == 400 and strict.json()["error"].startswith('ignored field "promt"')


def test_rerank(http: httpx.Client) -> None:
    documents = ["the cat sat on the mat", "the sky is blue"]
    for path in ("/api/rerank", "/v1/rerank"):
        found = http.post(path, json={"model": "ranker", "query": "why is the sky blue", "documents": documents}).json()
        assert found["method"] == "rank" and found["usage"]["total_tokens"] > 10
        for result in found["results"]:
            expected = TinyRanker().score("why is the sky blue", documents[result["index"]])
            assert result["relevance_score"] == pytest.approx(expected, abs=5e-3)
