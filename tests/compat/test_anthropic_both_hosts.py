"""Anthropic's API and llama-server's infill with real models in both hosts: content of the replies, not only the form.

The bundled model answers these questions correctly, so a wrong answer is a defect of ours.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.servers import RunningServer

pytestmark = pytest.mark.model
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "input_schema": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}},
}
ASK_WEATHER = {"role": "user", "content": "What is the weather in Paris?"}
SUM = {"role": "user", "content": "What is 17 + 25?"}
FRANCE = {"role": "user", "content": "What is the capital of France?"}
CHINA = {"role": "user", "content": [{"type": "text", "text": "中国的首都是哪里？"}]}


@pytest.fixture
def http(host: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=host.url, headers=host.headers, timeout=120, trust_env=False) as client:
        yield client


def body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "sprout", "max_tokens": 100, "temperature": 0, "messages": list(messages), **fields}


def send(http: httpx.Client, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The message, the same as a whole and as a stream."""
    reply = http.post("/v1/messages", json=body(*messages, **fields))
    assert reply.status_code == 200, reply.text
    whole: dict[str, Any] = reply.json()
    streamed = joined(events(http, body(*messages, **fields, stream=True)))
    for name in ("stop_reason", "stop_sequence", "content"):
        assert without_ids(streamed[name]) == without_ids(whole[name])
    assert total_input(streamed["usage"]) == total_input(whole["usage"])
    return whole


def events(http: httpx.Client, request: dict[str, Any]) -> list[dict[str, Any]]:
    with http.stream("POST", "/v1/messages", json=request) as reply:
        return [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line.startswith("data: ")]


def joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """A message from its events, as Anthropic's clients join them."""
    assert found[0]["type"] == "message_start" and found[-1]["type"] == "message_stop"
    message: dict[str, Any] = found[0]["message"]
    started = total_input(message["usage"])
    arguments = ""
    for event in found:
        match event:
            case {"type": "content_block_start", "content_block": block}:
                message["content"].append(block)
                arguments = ""
            case {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": piece}}:
                arguments += piece
                message["content"][-1]["input"] = arguments
            case {"type": "content_block_delta", "delta": delta}:
                name = next(key for key in delta if key != "type")
                message["content"][-1][name] += delta[name]
            case {"type": "content_block_stop"} if arguments:
                message["content"][-1]["input"] = json.loads(arguments)
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                message |= {**delta, "usage": usage}
    assert started == total_input(message["usage"]), "the first event has the true number of tokens"
    return message


def without_ids(value: Any) -> Any:
    return [{**block, "id": ""} for block in value] if isinstance(value, list) else value


def total_input(usage: dict[str, Any]) -> int:
    found: int = usage["input_tokens"] + usage["cache_read_input_tokens"]
    return found


def test_a_tool_round_trip(http: httpx.Client) -> None:
    called = send(http, ASK_WEATHER, tools=[WEATHER])
    (call,) = called["content"]
    assert (call["name"], call["input"], called["stop_reason"]) == ("get_weather", {"city": "Paris"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "18 degrees"}]}
    turns = (ASK_WEATHER, {"role": "assistant", "content": called["content"]}, {"role": "user", "content": [result]})
    answered = send(http, *turns, tools=[WEATHER])
    assert answered["content"] == [{"type": "text", "text": "The weather in Paris: 18 degrees."}]


def test_arguments_arrive_while_they_are_generated(http: httpx.Client) -> None:
    found = events(http, body(ASK_WEATHER, tools=[WEATHER], stream=True))
    pieces = [event["delta"]["partial_json"] for event in found if event.get("delta", {}).get("partial_json")]
    assert len(pieces) > 2 and json.loads("".join(pieces)) == {"city": "Paris"}


def test_forced_and_forbidden_calls(http: httpx.Client) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        forced = send(http, FRANCE, tools=[WEATHER], tool_choice={**choice, "disable_parallel_tool_use": True})
        assert [block["name"] for block in forced["content"]] == ["get_weather"]
    free = send(http, ASK_WEATHER, tools=[WEATHER], tool_choice={"type": "none"})
    assert {block["type"] for block in free["content"]} == {"text"}
    unknown = http.post("/v1/messages", json=body(FRANCE, tools=[WEATHER], tool_choice={"type": "tool", "name": "no"}))
    assert unknown.status_code == 400 and '"get_weather"' in unknown.json()["error"]["message"]


def test_thinking_and_its_budget(http: httpx.Client) -> None:
    thinking = send(http, SUM, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [block["type"] for block in thinking["content"]] == ["thinking", "text"]
    assert thinking["content"][0]["signature"] and thinking["content"][1]["text"] == "17 + 25 = 42"
    needed = thinking["usage"]["output_tokens_details"]["thinking_tokens"]
    short = send(http, SUM, thinking={"type": "enabled", "budget_tokens": 8})
    assert short["usage"]["output_tokens_details"]["thinking_tokens"] == 8 < needed
    assert [block["type"] for block in short["content"]] == ["thinking", "text"]
    for fields in ({}, {"thinking": {"type": "disabled"}}):
        assert [block["type"] for block in send(http, SUM, **fields)["content"]] == ["text"]
    turns = (SUM, {"role": "assistant", "content": thinking["content"]}, FRANCE)
    assert send(http, *turns)["content"][0]["text"] == "The capital of France is Paris."


def test_stop_sequences(http: httpx.Client) -> None:
    stopped = send(http, FRANCE, stop_sequences=["Paris", "。"])
    assert stopped["content"] == [{"type": "text", "text": "The capital of France is "}]
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "Paris")
    ended = send(http, FRANCE)
    assert (ended["stop_reason"], ended["stop_sequence"]) == ("end_turn", None)
    assert send(http, FRANCE, max_tokens=2)["stop_reason"] == "max_tokens"


def test_chinese(http: httpx.Client) -> None:
    assert send(http, CHINA)["content"] == [{"type": "text", "text": "中国的首都是北京。"}]
    schema = {"type": "object", "properties": {"首都": {"type": "string"}}, "required": ["首都"]}
    formatted = send(http, CHINA, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert set(json.loads(formatted["content"][0]["text"])) == {"首都"}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [FRANCE]},
        {"messages": [CHINA], "system": [{"type": "text", "text": "请用一句话回答。"}]},
        {"messages": [ASK_WEATHER], "tools": [WEATHER]},
        {"messages": [ASK_WEATHER], "tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"messages": [ASK_WEATHER], "tools": [WEATHER], "tool_choice": {"type": "any"}},
        {"messages": [SUM], "thinking": {"type": "adaptive"}},
        {"messages": [SUM], "thinking": {"type": "enabled", "budget_tokens": 0}},
    ],
)
def test_counted_tokens_are_those_of_the_message(http: httpx.Client, fields: dict[str, Any]) -> None:
    counted = http.post("/v1/messages/count_tokens", json={"model": "sprout", **fields}).json()["input_tokens"]
    for _ in range(2):  # the second time, the prompt is cached
        usage = http.post("/v1/messages", json=body(**fields)).json()["usage"]
        assert total_input(usage) == counted and usage["cache_creation_input_tokens"] == 0
    assert usage["cache_read_input_tokens"] > 0


@pytest.mark.parametrize("path", ["/v1/messages", "/infill"])
def test_a_client_that_disconnects_frees_its_place(http: httpx.Client, path: str) -> None:
    endless = {"model": "sprout", "stream": True, "max_tokens": 9000, "n_predict": 9000, "temperature": 0,
               "messages": [FRANCE], "input_prefix": "a", "input_suffix": "b", "logit_bias": None}  # fmt: skip
    started, ended = threading.Event(), threading.Event()

    def listen() -> None:
        with http.stream("POST", path, json=endless) as reply:
            next(reply.iter_lines())
            started.set()
        ended.set()

    threading.Thread(target=listen).start()
    assert started.wait(60) and ended.wait(60)
    deadline = time.monotonic() + 30
    while http.get("/api/queue").json()["requests"]:
        assert time.monotonic() < deadline


def test_gaps(http: httpx.Client) -> None:
    gap = {"model": "sprout", "input_prefix": "def add(a, b):\n", "prompt": "    ", "input_suffix": "\n"}
    found = http.post("/infill", json={**gap, "temperature": 0}).json()
    assert (found["content"], found["stop_type"], found["tokens_evaluated"]) == ("return a + b", "eos", 12)
    with http.stream("POST", "/infill", json={**gap, "temperature": 0, "stream": True}) as reply:
        lines = [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line]
    assert "".join(line["content"] for line in lines) == "return a + b" and lines[-1]["stop"]
    literal = {**gap, "input_prefix": "# <|fim_middle|>\n", "n_predict": 0, "response_fields": ["tokens_evaluated"]}
    as_text = http.post(
        "/api/tokenize", json={"model": "sprout", "prompt": "# <|fim_middle|>\n    ", "add_special": False}
    )
    counted = http.post("/infill", json=literal).json()["tokens_evaluated"]
    assert counted == len(as_text.json()["tokens"]) + 4  # three markers and the line break after the gap
