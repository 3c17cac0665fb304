"""Routes and headers that Ollama does not have, on a real socket with a scripted service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.aio import in_loop
from test_handler import serve

from ollama_nb.api.events import Done, Stats
from ollama_nb.server.handler import OllamaHandler, Route
from ollama_nb.server.routes import ROUTES


@in_loop
async def test_a_missing_or_invalid_query_argument_is_a_bad_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def echo(call: OllamaHandler) -> None:
        await call.send(call.get_query_argument("text").encode())

    monkeypatch.setitem(ROUTES, "/api/echo", {"GET": Route(echo)})
    async with serve(tmp_path) as h:
        assert (await h.client.get("/api/echo?text=天")).text == "天"
        missing = await h.client.get("/api/echo")
        assert (missing.status_code, missing.json()["code"]) == (400, "bad_request")
        assert missing.json()["error"] == "missing argument text"
        invalid = await h.client.get("/api/echo?text=%ff%25")
        assert (invalid.status_code, invalid.json()["code"]) == (400, "bad_request")
        assert "%%" not in invalid.json()["error"]


@in_loop
async def test_tokenize_and_detokenize(tmp_path: Path) -> None:
    async with serve(tmp_path) as h:
        reply = await h.client.post("/api/tokenize", json={"model": "m", "prompt": "x"})
        assert (reply.status_code, reply.text) == (200, '{"model":"m","tokens":[1,2,3]}')
        reply = await h.client.post("/api/detokenize", json={"model": "m", "tokens": [5, 6]})
        assert reply.json() == {"model": "m", "content": "天 & <x>"}
        assert h.service.asked[1] == ("m", (5, 6))
        for wrong in ("5", [1.5], ["a"], [1 << 64]):
            reply = await h.client.post("/api/detokenize", json={"model": "m", "tokens": wrong})
            assert reply.status_code == 400 and "DetokenizeRequest.tokens" in reply.json()["error"]
        assert (await h.client.get("/api/tokenize")).status_code == 405


@in_loop
async def test_strict_and_run_record_by_header(tmp_path: Path) -> None:
    bodies = {"/api/generate": {"model": "m", "prompt": "x", "promt": 1}, "/api/chat": {"model": "m", "promt": 1}}
    async with serve(tmp_path) as h:
        stats = Stats(messages_dropped=2, prompt_tokens_dropped=9)
        h.service.script = [Done("stop", stats, warnings=("w",), run={"seed": 7})]
        for path, body in bodies.items():
            for value, wanted in (("true", True), ("1", True), ("false", False), ("", False)):
                headers = {"X-Ollama-Strict": value, "X-Ollama-Run-Record": value}
                reply = await h.client.post(path, json={**body, "stream": False}, headers=headers)
                asked = h.service.asked[-1]
                assert (asked.strict, asked.run_record) == (wanted, wanted)
                assert len(asked.ignored) == 1 and asked.ignored[0].startswith('ignored field "promt"')
                found = reply.json()
                assert (found["warnings"], found["run"]) == (["w"], {"seed": 7})
                assert found["truncated"] == {"messages_dropped": 2, "prompt_tokens_dropped": 9}
        h.service.script = [Done("stop", Stats())]
        streamed = await h.client.post("/api/chat", json={"model": "m"})
        assert not {"truncated", "warnings", "run"} & json.loads(streamed.text.splitlines()[-1]).keys()
        await h.client.post("/api/embed", json={"model": "m", "input": "x"}, headers={"X-Ollama-Strict": "yes"})
        assert h.service.asked[-1].strict


@in_loop
async def test_rerank_in_both_formats(tmp_path: Path) -> None:
    body = {"model": "m", "query": "q", "documents": ["a", "b"]}
    async with serve(tmp_path) as h:
        for path in ("/api/rerank", "/v1/rerank"):
            reply = await h.client.post(path, json={**body, "return_documents": True, "top_n": 2})
            assert reply.text == (
                '{"model":"m","results":[{"index":1,"relevance_score":0.75,"document":"b"},'
                '{"index":0,"relevance_score":0.5,"document":"a"}],"method":"rank",'
                '"usage":{"prompt_tokens":9,"total_tokens":9}}'
            )
            assert (h.service.asked[-1].top_n, h.service.asked[-1].documents) == (2, ("a", "b"))
            reply = await h.client.post(path, json=body, headers={"X-Ollama-Strict": "1"})
            assert reply.json()["results"][0] == {"index": 1, "relevance_score": 0.75}
            assert h.service.asked[-1].strict
        wrong = {**body, "query": "wrong"}
        assert (await h.client.post("/api/rerank", json=wrong)).json() == {"error": "no", "code": "bad_request"}
        reply = await h.client.post("/v1/rerank", json=wrong)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
        assert reply.json()["error"] == {
            "message": "no",
            "type": "invalid_request_error",
            "param": None,
            "code": "bad_request",
        }
        reply = await h.client.post("/v1/rerank", json={**body, "documents": [{"text": "a"}]})
        assert reply.status_code == 400 and "RerankRequest.documents" in reply.json()["error"]["message"]
