"""Tools, thinking and formats with a real model in both hosts: plain HTTP, the ``ollama`` client and our own.

The bundled model answers these questions correctly, so a wrong answer is a defect of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import ollama
import pytest
from support.servers import RunningServer

from ollama_nb import Client

pytestmark = pytest.mark.model


def function(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "required": list(properties),
        "properties": {name: {"type": kind} for name, kind in properties.items()},
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = function("get_weather", "Get the current weather in a city", city="string")
TIME = function("get_time", "Get the current time in a city", city="string")
ADD = function("add", "Add two numbers", a="number", b="number")
CAPITAL = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
Call = tuple[str, dict[str, Any]]


@dataclass
class Received:
    """A reply, joined from its pieces."""

    content: str = ""
    thinking: str = ""
    calls: list[Call] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)

    def take(self, reply: dict[str, Any]) -> None:
        message = reply["message"]
        self.content += message.get("content") or ""
        self.thinking += message.get("thinking") or ""
        for call in message.get("tool_calls") or ():
            self.calls.append((call["function"]["name"], dict(call["function"]["arguments"])))
            self.ids.append(call.get("id") or "")
        if reply.get("done"):
            self.final = reply


Way = Callable[..., Received]


def by_http(server: RunningServer, messages: list[dict[str, Any]], stream: bool, fields: dict[str, Any]) -> Received:
    received = Received()
    body = {"model": "sprout", "messages": messages, "stream": stream, **fields}
    headers = dict(server.headers)
    with (
        httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False) as http,
        http.stream("POST", "/api/chat", json=body) as reply,
    ):
        assert reply.status_code == 200
        for line in reply.iter_lines():
            received.take(json.loads(line))
    return received


def by_ollama(server: RunningServer, messages: list[dict[str, Any]], stream: bool, fields: dict[str, Any]) -> Received:
    received = Received()
    client = ollama.Client(host=server.url, headers=server.headers, timeout=120, trust_env=False)
    with client._client:
        replies: Any = client.chat("sprout", messages, stream=stream, **fields)
        for reply in replies if stream else [replies]:
            received.take(reply.model_dump())
    return received


def by_ours(server: RunningServer, messages: list[dict[str, Any]], stream: bool, fields: dict[str, Any]) -> Received:
    received = Received()
    key = server.headers.get("Authorization", "").removeprefix("Bearer ")
    replies: Any = Client(server.url, key).chat("sprout", messages, stream=stream, **fields)
    for reply in replies if stream else [replies]:
        received.take(dict(reply))
    return received


@pytest.fixture(params=["http", "ollama", "ours"])
def way(request: pytest.FixtureRequest) -> Any:
    return {"http": by_http, "ollama": by_ollama, "ours": by_ours}[request.param]


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request: pytest.FixtureRequest, host: RunningServer, way: Any) -> Way:
    def send(question: str | list[dict[str, Any]], **fields: Any) -> Received:
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        received: Received = way(host, messages, request.param, fields)
        assert received.final["done_reason"] == ("length" if "options" in fields else "stop")
        assert received.final["eval_count"] > 0
        assert "<think>" not in received.content + received.thinking and "tool_call>" not in received.content
        return received

    return send


CALLS = [
    ("What is the weather in Paris?", [WEATHER], [("get_weather", {"city": "Paris"})]),
    ("What time is it in London?", [WEATHER, TIME], [("get_time", {"city": "London"})]),
    ("What is 12 plus 30?", [ADD], [("add", {"a": 12, "b": 30})]),
    (
        "What is the weather in Paris and what time is it in London?",
        [WEATHER, TIME],
        [("get_weather", {"city": "Paris"}), ("get_time", {"city": "London"})],
    ),
    (
        "What is the weather in Paris and in Rome?",
        [WEATHER],
        [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})],
    ),
]


@pytest.mark.parametrize(("question", "tools", "expected"), CALLS, ids=[question for question, _, _ in CALLS])
@pytest.mark.parametrize("think", [False, True])
def test_calls(ask: Way, question: str, tools: list[dict[str, Any]], expected: list[Call], think: bool) -> None:
    received = ask(question, tools=tools, think=think)
    assert received.calls == expected
    assert received.content == ""
    assert ("tool" in received.thinking) is think
    if any(received.ids):  # the official client has no such field
        assert len(set(received.ids)) == len(expected)


@pytest.mark.parametrize("question", ["Hello", FRANCE])
def test_no_call_where_none_is_needed(ask: Way, question: str) -> None:
    received = ask(question, tools=[WEATHER], think=False)
    assert received.content and not received.calls


def test_a_call_and_its_result(ask: Way) -> None:
    question = {"role": "user", "content": "What is the weather in Paris?"}
    received = ask([question], tools=[WEATHER], think=False)
    calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in received.calls]
    result = {"role": "tool", "content": '{"temperature": 18, "condition": "sunny"}', "tool_name": "get_weather"}
    talk = [question, {"role": "assistant", "content": "", "tool_calls": calls}, result]
    assert ask(talk, tools=[WEATHER], think=False).content == "The weather in Paris is sunny, with 18 degrees."


@pytest.mark.parametrize(("fields", "thinks"), [({}, True), ({"think": True}, True), ({"think": False}, False)])
def test_thinking_on_off_and_absent(ask: Way, fields: dict[str, Any], thinks: bool) -> None:
    received = ask(FRANCE, **fields)
    assert received.content == PARIS
    assert received.thinking.rstrip() == ("The user asks for the capital of France. It is Paris." if thinks else "")


@pytest.mark.parametrize("think", [False, True])
def test_a_reply_constrained_to_json(ask: Way, think: bool) -> None:
    received = ask(f"{FRANCE} Answer in JSON.", format=CAPITAL, think=think)
    assert json.loads(received.content) == {"capital": "Paris"}
    assert bool(received.thinking) is think


def test_json_and_tools_at_once(ask: Way) -> None:
    question = f"{FRANCE} Answer in JSON."
    answered = ask(question, format=CAPITAL, tools=[WEATHER], think=False)
    assert json.loads(answered.content) == {"capital": "Paris"} and not answered.calls
    called = ask("What is the weather in Paris?", format=CAPITAL, tools=[WEATHER], think=True)
    assert called.calls == [("get_weather", {"city": "Paris"})] and not called.content


@pytest.mark.parametrize("way", ["http", "ours"], indirect=True)  # the official client drops unknown fields
def test_dropped_messages_are_reported(ask: Way) -> None:
    roles = ("user", "assistant")
    talk = [{"role": roles[at % 2], "content": f"I count {at}. " * 20} for at in range(40)]
    received = ask([*talk, {"role": "user", "content": FRANCE}], think=False, options={"num_predict": 4})
    truncated = received.final["truncated"]
    assert truncated["messages_dropped"] > 10 and truncated["prompt_tokens_dropped"] > 1000


def test_without_truncation_a_long_conversation_is_refused(host: RunningServer) -> None:
    long = [{"role": "user", "content": f"I count {at}. " * 20} for at in range(40)]
    body = {"model": "sprout", "messages": long, "truncate": False}
    reply = httpx.post(f"{host.url}/api/chat", json=body, headers=host.headers, timeout=120, trust_env=False)
    assert reply.status_code == 400
    assert "the prompt is longer than the context length currently available" in reply.json()["error"]


def test_whole_messages_are_dropped_on_request(host: RunningServer) -> None:
    def chat(*last: str) -> httpx.Response:
        talk = [{"role": "user", "content": f"I count {at}. " * 20} for at in range(40)]
        talk = [{"role": "system", "content": "You count."}, *talk, {"role": "user", "content": "".join(last)}]
        body = {"model": "sprout", "messages": talk, "truncate": "messages", "stream": False, "think": False}
        body["options"] = {"num_predict": 4}
        return httpx.post(f"{host.url}/api/chat", json=body, headers=host.headers, timeout=120, trust_env=False)

    dropped = chat(FRANCE).json()["truncated"]
    assert dropped["messages_dropped"] > 10 and dropped["prompt_tokens_dropped"] > 1000
    refused = chat("I count. " * 2000)
    assert refused.status_code == 400
    assert re.search(r"the last message .* \d{4,5} tokens, but only \d{3,4} fit", refused.json()["error"])
