"""Tools, thinking and bound answers with a real model, in both hosts: bare HTTP, the ``ollama`` client and our own.

The questions are those that the bundled model answers right, so that a wrong answer is a fault of ours.
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
class Said:
    """What came back, put together from however many pieces."""

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


Door = Callable[..., Said]


def by_http(server: RunningServer, messages: list[dict[str, Any]], stream: bool, fields: dict[str, Any]) -> Said:
    said = Said()
    body = {"model": "sprout", "messages": messages, "stream": stream, **fields}
    headers = dict(server.headers)
    with (
        httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False) as http,
        http.stream("POST", "/api/chat", json=body) as reply,
    ):
        assert reply.status_code == 200
        for line in reply.iter_lines():
            said.take(json.loads(line))
    return said


def by_ollama(server: RunningServer, messages: list[dict[str, Any]], stream: bool, fields: dict[str, Any]) -> Said:
    said = Said()
    client = ollama.Client(host=server.url, headers=server.headers, timeout=120, trust_env=False)
    with client._client:
        replies: Any = client.chat("sprout", messages, stream=stream, **fields)
        for reply in replies if stream else [replies]:
            said.take(reply.model_dump())
    return said


def by_ours(server: RunningServer, messages: list[dict[str, Any]], stream: bool, fields: dict[str, Any]) -> Said:
    said = Said()
    key = server.headers.get("Authorization", "").removeprefix("Bearer ")
    replies: Any = Client(server.url, key).chat("sprout", messages, stream=stream, **fields)
    for reply in replies if stream else [replies]:
        said.take(dict(reply))
    return said


@pytest.fixture(params=["http", "ollama", "ours"])
def way(request: pytest.FixtureRequest) -> Any:
    return {"http": by_http, "ollama": by_ollama, "ours": by_ours}[request.param]


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request: pytest.FixtureRequest, host: RunningServer, way: Any) -> Door:
    def door(question: str | list[dict[str, Any]], **fields: Any) -> Said:
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        said: Said = way(host, messages, request.param, fields)
        assert said.final["done_reason"] == ("length" if "options" in fields else "stop")
        assert said.final["eval_count"] > 0
        assert "<think>" not in said.content + said.thinking and "tool_call>" not in said.content
        return said

    return door


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
def test_calls(ask: Door, question: str, tools: list[dict[str, Any]], expected: list[Call], think: bool) -> None:
    said = ask(question, tools=tools, think=think)
    assert said.calls == expected
    assert said.content == ""
    assert ("tool" in said.thinking) is think
    if any(said.ids):  # the official client does not know of them
        assert len(set(said.ids)) == len(expected)


@pytest.mark.parametrize("question", ["Hello", FRANCE])
def test_no_call_where_none_is_needed(ask: Door, question: str) -> None:
    said = ask(question, tools=[WEATHER], think=False)
    assert said.content and not said.calls


def test_there_and_back(ask: Door) -> None:
    question = {"role": "user", "content": "What is the weather in Paris?"}
    said = ask([question], tools=[WEATHER], think=False)
    calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in said.calls]
    result = {"role": "tool", "content": '{"temperature": 18, "condition": "sunny"}', "tool_name": "get_weather"}
    talk = [question, {"role": "assistant", "content": "", "tool_calls": calls}, result]
    assert ask(talk, tools=[WEATHER], think=False).content == "The weather in Paris is sunny, with 18 degrees."


@pytest.mark.parametrize(("fields", "thinks"), [({}, True), ({"think": True}, True), ({"think": False}, False)])
def test_thinking_on_off_and_absent(ask: Door, fields: dict[str, Any], thinks: bool) -> None:
    said = ask(FRANCE, **fields)
    assert said.content == PARIS
    assert said.thinking.rstrip() == ("The user asks for the capital of France. It is Paris." if thinks else "")


@pytest.mark.parametrize("think", [False, True])
def test_an_answer_bound_to_json(ask: Door, think: bool) -> None:
    said = ask(f"{FRANCE} Answer in JSON.", format=CAPITAL, think=think)
    assert json.loads(said.content) == {"capital": "Paris"}
    assert bool(said.thinking) is think


def test_json_and_tools_at_once(ask: Door) -> None:
    question = f"{FRANCE} Answer in JSON."
    answered = ask(question, format=CAPITAL, tools=[WEATHER], think=False)
    assert json.loads(answered.content) == {"capital": "Paris"} and not answered.calls
    called = ask("What is the weather in Paris?", format=CAPITAL, tools=[WEATHER], think=True)
    assert called.calls == [("get_weather", {"city": "Paris"})] and not called.content


@pytest.mark.parametrize("way", ["http", "ours"], indirect=True)  # the official client keeps only what it knows
def test_what_was_dropped_is_told(ask: Door) -> None:
    roles = ("user", "assistant")
    talk = [{"role": roles[at % 2], "content": f"I count {at}. " * 20} for at in range(40)]
    said = ask([*talk, {"role": "user", "content": FRANCE}], think=False, options={"num_predict": 4})
    truncated = said.final["truncated"]
    assert truncated["messages_dropped"] > 10 and truncated["prompt_tokens_dropped"] > 1000


def test_a_conversation_that_must_not_be_cut_is_refused(host: RunningServer) -> None:
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
