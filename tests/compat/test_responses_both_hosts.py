"""The Responses API in both hosts with a real model: conversations, tools, constraints, background, restarts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.openapi import BY_ID, SSE, check_reply
from support.processes import until
from support.servers import RunningServer, standalone

pytestmark = pytest.mark.model
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
CAPITAL = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
ENDED = ("completed", "incomplete", "failed", "cancelled")
ENDLESS = {"input": "Hello", "options": {"num_predict": -1, "logit_bias": {"<|im_end|>": -100}}, "background": True}


class Responses:
    """Calls the API of one server; every reply is checked against its description."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def send(self, operation: str, path: str, status: int = 200, **body: Any) -> Any:
        found = BY_ID[operation]
        reply = self.http.request(found.method, path, json=body or None)
        assert reply.status_code == status, reply.text
        parts = check_reply(found, status, reply.headers["content-type"], reply.content)
        return parts if reply.headers["content-type"] == SSE else parts[0]

    def create(self, **body: Any) -> Any:
        settings = {"model": "sprout", "temperature": 0, "reasoning": {"effort": "none"}}
        return self.send("createResponse", "/v1/responses", **{**settings, **body})

    def get(self, response: dict[str, Any], status: int = 200) -> Any:
        return self.send("getResponse", f"/v1/responses/{response['id']}", status)

    def ended(self, response: dict[str, Any]) -> Any:
        until(lambda: self.get(response)["status"] in ENDED)
        return self.get(response)


@pytest.fixture
def api(host: RunningServer) -> Iterator[Responses]:
    with client_of(host) as http:
        yield Responses(http)


def client_of(server: RunningServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers=server.headers, timeout=120, trust_env=False)


def text(response: dict[str, Any]) -> str:
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def test_a_conversation_continues_in_the_cached_prefix(api: Responses) -> None:
    instructions = "You are a helpful assistant. 请回答问题。"
    first = api.create(input=FRANCE, instructions=instructions)
    assert text(first) == PARIS and first["status"] == "completed"
    second = api.create(input="谢谢", instructions=instructions, previous_response_id=first["id"])
    usage, before = second["usage"], first["usage"]
    assert usage["input_tokens"] > before["input_tokens"] + before["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] >= before["input_tokens"]
    items = api.send("listInputItems", f"/v1/responses/{second['id']}/input_items?order=asc")["data"]
    assert [item["content"][0]["text"] for item in items] == [FRANCE, PARIS, "谢谢"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_its_output(api: Responses, stream: bool) -> None:
    reply = api.create(input="What is the weather in Paris?", tools=[WEATHER], stream=stream)
    called = reply[-1]["response"] if stream else reply
    (call,) = called["output"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})
    if stream:
        pieces = [event["delta"] for event in reply if event["type"] == "response.function_call_arguments.delta"]
        assert "".join(pieces) == call["arguments"]
    output = {
        "type": "function_call_output",
        "call_id": call["call_id"],
        "output": '{"temperature": 18, "condition": "sunny"}',
    }
    answered = api.create(input=[output], previous_response_id=called["id"], tools=[WEATHER])
    assert text(answered) == "The weather in Paris is sunny, with 18 degrees."
    whole = [{"role": "user", "content": "What is the weather in Paris?"}, call, output]
    assert text(api.create(input=whole, tools=[WEATHER], store=False)) == text(answered)


def test_a_forced_call(api: Responses) -> None:
    choice = {"type": "function", "name": "get_weather"}
    (call,) = api.create(input=FRANCE, tools=[WEATHER], tool_choice=choice)["output"]
    assert call["type"] == "function_call" and json.loads(call["arguments"]).keys() == {"city"}
    assert not [item for item in api.create(input="What is the weather in Paris?", tools=[WEATHER], tool_choice="none")
                ["output"] if item["type"] == "function_call"]  # fmt: skip


def test_thinking_and_a_schema(api: Responses) -> None:
    format = {"type": "json_schema", "name": "capital", "schema": CAPITAL}
    response = api.create(input=f"{FRANCE} Answer in JSON.", text={"format": format}, reasoning={})
    thought, _ = response["output"]
    assert json.loads(text(response)) == {"capital": "Paris"}
    assert thought["summary"][0]["text"].strip() and response["usage"]["output_tokens_details"]["reasoning_tokens"] > 5


def test_limits(api: Responses) -> None:
    short = api.create(input=FRANCE, max_output_tokens=3)
    assert (short["status"], short["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert text(short) and PARIS.startswith(text(short))
    long = [{"role": "user", "content": f"I count {at}. " * 20} for at in range(40)]
    body = {"model": "sprout", "input": long, "max_output_tokens": 3}
    error = api.send("createResponse", "/v1/responses", 400, **body)["error"]
    assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
    assert api.create(input=long, max_output_tokens=3, truncation="auto")["usage"]["input_tokens"] > 100


def test_background_and_cancel(api: Responses) -> None:
    queued = api.create(input=FRANCE, background=True)
    assert queued["status"] == "queued" and text(api.ended(queued)) == PARIS
    running = api.create(**ENDLESS)
    until(lambda: api.get(running)["status"] == "in_progress")
    cancelled = api.send("cancelResponse", f"/v1/responses/{running['id']}/cancel")
    assert cancelled["status"] == "cancelled" and text(cancelled)
    assert api.http.get("/api/queue").json() == {"requests": []}
    again = api.create(input=FRANCE, background=True, stream=True)
    path = f"/v1/responses/{again[0]['response']['id']}?stream=true&starting_after=3"
    assert api.send("getResponse", path) == again[4:]
    api.send("deleteResponse", f"/v1/responses/{queued['id']}")
    api.get(queued, 404)


def test_stored_responses_outlive_their_server(tmp_path: Path) -> None:
    """After kill -9 the next server has the ended responses and reports the running one as failed."""
    with standalone(tmp_path) as first, client_of(first) as http:
        api = Responses(http)
        kept = api.create(input=FRANCE, metadata={"目的": "测试"})
        running = api.create(**ENDLESS)
        until(lambda: api.get(running)["status"] == "in_progress")
        os.kill(first.pid, signal.SIGKILL)
        first.process.wait()
    with standalone(tmp_path) as second, client_of(second) as http:
        api = Responses(http)
        assert api.get(kept) == kept
        failed = api.get(running)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
        continued = api.create(input="谢谢", previous_response_id=kept["id"])
        assert continued["usage"]["input_tokens"] > kept["usage"]["input_tokens"] + kept["usage"]["output_tokens"]
