"""OpenAI's API with real models in both hosts: the content of replies, and what the model cannot do.

The greedy texts of stories260K and the vectors of all-MiniLM were computed without llama.cpp; sprout answers these
questions correctly.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import RunningServer

pytestmark = pytest.mark.model
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}},
    },
}
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
CAPITAL = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
GREEDY = {"temperature": 0, "num_thread": 1, "draft_num_predict": 0}


@pytest.fixture(scope="module")
def http(host: RunningServer, models: Path) -> Iterator[httpx.Client]:
    """A client of a server with the models stories and minilm, beside the bundled one."""
    with httpx.Client(base_url=host.url, headers=host.headers, timeout=120, trust_env=False) as client:
        for name, file in (("stories", "stories260K-f32.gguf"), ("me/minilm", "all-MiniLM-L6-v2-q8_0.gguf")):
            data = (models / file).read_bytes()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            client.post(f"/api/blobs/{digest}", content=data).raise_for_status()
            client.post("/api/create", json={"model": name, "files": {file: digest}}).raise_for_status()
        yield client


def chat(http: httpx.Client, messages: Any, **fields: Any) -> dict[str, Any]:
    """The first choice of a reply; a stream is joined."""
    body = {"model": "sprout", "messages": messages, **GREEDY, **fields}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    if not fields.get("stream"):
        found: dict[str, Any] = reply.json()["choices"][0]
        return found
    chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert len({chunk["id"] for chunk in chunks}) == len({chunk["created"] for chunk in chunks}) == 1
    return joined(chunk["choices"][0] for chunk in chunks if chunk["choices"])


def joined(choices: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The choice that the chunks of a stream make together, as a client joins them."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": ""}
    calls: dict[int, dict[str, Any]] = {}
    logprobs: list[Any] = []
    reason = None
    for choice in choices:
        assert reason is None
        delta, reason = choice["delta"], choice["finish_reason"]
        logprobs += choice.get("logprobs", {}).get("content", ())
        for name in ("content", "reasoning", "reasoning_content"):
            message[name] += delta.get(name, "")
        for call in delta.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            if call["index"] in calls:
                calls[call["index"]]["function"]["arguments"] += arguments
            else:
                calls[call["index"]] = call
    message["tool_calls"] = list(calls.values())
    return {"message": message, "finish_reason": reason, "logprobs": {"content": logprobs}}


def refusal(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()["error"]
    return found


def post(http: httpx.Client, path: str, **body: Any) -> Any:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_greedy_texts(http: httpx.Client, reference: dict[str, Any]) -> None:
    """All reference prompts at once, as texts and as tokens; streamed and not."""
    expected = reference["stories260K"]["greedy"]
    for prompts in ([entry["prompt"] for entry in expected], [entry["prompt_tokens"] for entry in expected]):
        body = {"model": "stories", "prompt": prompts, "raw": True, "max_tokens": 64, **GREEDY}
        found = post(http, "/v1/completions", **body)
        texts = [choice["text"] for choice in found["choices"]]
        assert texts == [entry["text"] for entry in expected]
        assert [choice["index"] for choice in found["choices"]] == list(range(len(expected)))
        assert found["usage"]["prompt_tokens"] == sum(len(entry["prompt_tokens"]) for entry in expected)
        assert found["usage"]["completion_tokens"] == sum(len(entry["tokens"]) for entry in expected)
        streamed = http.post("/v1/completions", json={**body, "stream": True}).text
        joined_texts = [""] * len(expected)
        for line in streamed.splitlines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                joined_texts[choice["index"]] += choice["text"]
        assert joined_texts == texts


def test_log_probabilities_of_a_completion(http: httpx.Client, reference: dict[str, Any]) -> None:
    entry = reference["stories260K"]["greedy"][0]
    body = {"model": "stories", "prompt": entry["prompt"], "raw": True, "max_tokens": 16, "logprobs": 3, **GREEDY}
    (choice,) = post(http, "/v1/completions", echo=True, **body)["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(entry["prompt"] + ", there was")
    for token, value, top, at in zip(*logprobs.values(), strict=True):
        assert choice["text"][at:].startswith(token)
        assert value == max(top.values()) and len(top) == 3  # greedy: the chosen token is one of them
    streamed = http.post("/v1/completions", json={**body, "echo": True, "stream": True}).text
    pieces = [piece for line in streamed.splitlines() if "{" in line for piece in json.loads(line[6:])["choices"]]
    for name in ("tokens", "text_offset"):
        assert [value for piece in pieces for value in piece.get("logprobs", {}).get(name, ())] == logprobs[name]


def test_choices_and_the_best_of_them(http: httpx.Client) -> None:
    body = {"model": "stories", "prompt": "The", "raw": True, "max_tokens": 12, "num_thread": 1, "logprobs": 0}
    choices = post(http, "/v1/completions", **body, n=4, seed=7)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in choices}) > 1

    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return float(sum(values) / len(values))

    found = post(http, "/v1/completions", **body, n=2, best_of=6, seed=7)
    best, second = found["choices"]
    assert mean(best) >= mean(second) and (best["index"], second["index"]) == (0, 1)
    sent = sum(len(choice["logprobs"]["tokens"]) for choice in found["choices"])
    assert found["usage"]["completion_tokens"] > sent and found["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_answers_and_thinking(http: httpx.Client, stream: bool) -> None:
    thought = chat(http, FRANCE, stream=stream)
    assert (thought["message"]["content"], thought["finish_reason"]) == (PARIS, "stop")
    assert "Paris" in thought["message"]["reasoning"] == thought["message"]["reasoning_content"]
    for off in ({"reasoning_effort": "none"}, {"think": False}, {"chat_template_kwargs": {"enable_thinking": False}}):
        plain = chat(http, FRANCE, stream=stream, **off)["message"]
        assert plain["content"] == PARIS and not plain.get("reasoning")
    inline = chat(http, FRANCE, stream=stream, reasoning_format="none")["message"]
    assert inline["content"] == f"<think>{thought['message']['reasoning']}</think>{PARIS}"
    budget = http.post(
        "/v1/chat/completions", json={"model": "sprout", "messages": FRANCE, "reasoning_budget": 2, **GREEDY}
    ).json()
    assert budget["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    assert budget["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_their_results(http: httpx.Client, stream: bool) -> None:
    called = chat(http, ASK_WEATHER, tools=[WEATHER], stream=stream, think=False)
    (call,) = called["message"]["tool_calls"]
    assert (called["finish_reason"], called["message"]["content"]) == ("tool_calls", "")
    assert call["function"]["name"] == "get_weather" and call["id"].startswith("call_")
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    result = '{"temperature": 18, "condition": "sunny"}'
    talk = [
        *ASK_WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": [{"type": "text", "text": result}]},
    ]
    answer = chat(http, talk, tools=[WEATHER], stream=stream, think=False)["message"]
    assert answer["content"] == "The weather in Paris is sunny, with 18 degrees."
    parts = [{"type": "text", "text": "What is the weather"}, {"type": "text", "text": "in Paris?"}]
    assert chat(http, [{"role": "user", "content": parts}], tools=[WEATHER], think=False)["message"]["tool_calls"]


@pytest.mark.parametrize("stream", [False, True])
def test_forced_and_forbidden_calls(http: httpx.Client, stream: bool) -> None:
    """Sprout would not call a tool in reply to a greeting, and would in reply to the question."""
    time = {"type": "function", "function": {**WEATHER["function"], "name": "get_time"}}
    hello = [{"role": "user", "content": "Hello"}]
    named = {"type": "function", "function": {"name": "get_time"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for choice, names in (
        ("required", {"get_weather", "get_time"}), (named, {"get_time"}), (allowed, {"get_time"}),
    ):  # fmt: skip
        for think in (False, True):
            forced = chat(http, hello, tools=[WEATHER, time], tool_choice=choice, stream=stream, think=think)
            assert forced["finish_reason"] == "tool_calls"
            for call in forced["message"]["tool_calls"]:
                assert call["function"]["name"] in names
                assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    for think in (False, True):
        free = chat(http, ASK_WEATHER, tools=[WEATHER], tool_choice="none", stream=stream, think=think)
        assert not free["message"].get("tool_calls") and free["finish_reason"] == "stop"
    single = {"parallel_tool_calls": False, "tool_choice": "required", "temperature": 1}
    one = chat(http, ASK_WEATHER, tools=[WEATHER], stream=stream, think=False, **single)
    assert len(one["message"]["tool_calls"]) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": CAPITAL}}},
        {"guided_json": CAPITAL},
        {"structured_outputs": {"json": CAPITAL}},
        {"format": CAPITAL, "n": 2},
    ],
)
def test_structured_replies(http: httpx.Client, fields: dict[str, Any]) -> None:
    for think in (False, True):
        content = chat(http, FRANCE, think=think, **fields)["message"]["content"]
        assert json.loads(content) == {"capital": "Paris"}


def test_other_constraints(http: httpx.Client) -> None:
    for fields, expected in (
        ({"guided_choice": ["左", "右"]}, ("左", "右")),
        ({"guided_regex": "天{3}"}, ("天天天",)),
        ({"guided_grammar": 'root ::= "天"{2}'}, ("天天",)),
    ):
        assert chat(http, FRANCE, think=False, **fields)["message"]["content"] in expected
    content = chat(http, FRANCE, think=False, response_format={"type": "json_object"}, max_tokens=200)
    assert content["finish_reason"] == "length" or isinstance(json.loads(content["message"]["content"]), dict)


def test_log_probabilities_of_a_chat(http: httpx.Client) -> None:
    fields = {"logprobs": True, "top_logprobs": 2, "think": False, **GREEDY}
    whole = chat(http, FRANCE, **fields)["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in whole).decode().startswith(PARIS)
    assert all(entry["logprob"] == max(top["logprob"] for top in entry["top_logprobs"]) for entry in whole)
    streamed = chat(http, FRANCE, stream=True, **fields)["logprobs"]["content"]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in whole]


def test_a_logit_bias_forbids_a_token(http: httpx.Client) -> None:
    (token,) = post(http, "/api/tokenize", model="sprout", prompt=" Paris", add_special=False)["tokens"][:1]
    biased = chat(http, FRANCE, think=False, logit_bias={str(token): -100}, **GREEDY)["message"]["content"]
    assert biased != PARIS


def test_a_limit_and_a_stop(http: httpx.Client) -> None:
    cut = chat(http, FRANCE, think=False, max_completion_tokens=3, max_tokens=1)
    assert (cut["finish_reason"], cut["message"]["content"]) == ("length", "The capital of")
    stopped = chat(http, FRANCE, think=False, stop=" of")
    assert (stopped["finish_reason"], stopped["message"]["content"]) == ("stop", "The capital")


def test_embeddings(http: httpx.Client, reference: dict[str, Any]) -> None:
    expected = reference["all-MiniLM-L6-v2"]["embeddings"][:3]
    body = {"model": "me/minilm", "input": [entry["text"] for entry in expected]}
    found = post(http, "/v1/embeddings", **body)
    vectors = [entry["embedding"] for entry in found["data"]]
    for vector, entry in zip(vectors, expected, strict=True):
        assert sum(a * b for a, b in zip(vector, entry["vector"], strict=True)) > 0.99
    assert found["usage"]["prompt_tokens"] == sum(len(entry["tokens"]) for entry in expected)
    for inputs in ([entry["tokens"] for entry in expected], expected[0]["tokens"]):
        tokens = post(http, "/v1/embeddings", model="me/minilm", input=inputs)["data"]
        assert tokens[0]["embedding"] == pytest.approx(vectors[0], abs=1e-3)
    coded = post(http, "/v1/embeddings", **body, encoding_format="base64", dimensions=8)["data"]
    numbers = struct.unpack("<8f", base64.b64decode(coded[0]["embedding"]))
    assert numbers == pytest.approx(post(http, "/v1/embeddings", **body, dimensions=8)["data"][0]["embedding"])
    assert len(post(http, "/v1/embeddings", model="me/minilm", input="")["data"]) == 1


def test_scores(http: httpx.Client) -> None:
    texts = ["A kitten naps on the couch.", "Interest rates rose again."]
    one = post(http, "/v1/score", model="me/minilm", text_1="A cat is sleeping on the sofa.", text_2=texts)["data"]
    pairs = post(http, "/v1/score", model="me/minilm", text_1=["A cat is sleeping on the sofa."] * 2, text_2=texts)
    assert one[0]["score"] > one[1]["score"] + 0.2
    assert [entry["score"] for entry in pairs["data"]] == pytest.approx([entry["score"] for entry in one], abs=1e-4)


def test_models(http: httpx.Client) -> None:
    listed = post_get(http, "/v1/models")
    named = {entry["id"]: entry for entry in listed["data"]}
    assert {"stories:latest", "me/minilm:latest"} <= named.keys() and listed["object"] == "list"
    assert named["me/minilm:latest"]["owned_by"] == "me" and named["stories:latest"]["owned_by"] == "library"
    for name in ("me/minilm", "me%2Fminilm", "me/minilm:latest", "stories", "STORIES"):
        found = post_get(http, f"/v1/models/{name}")
        assert found["id"] == name.replace("%2F", "/") and found["object"] == "model"
    for name in ("no", "no/such", "no%2Fsuch"):
        assert refusal(http.get(f"/v1/models/{name}"), 404)["code"] == "model_not_found"
    assert refusal(http.get("/v1/models/a@b"))["code"] == "invalid_name"


def post_get(http: httpx.Client, path: str) -> Any:
    reply = http.get(path)
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    return reply.json()


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("chat/completions", {"model": "no", "messages": FRANCE}, 404, "model_not_found"),
        ("chat/completions", {"model": "", "messages": FRANCE}, 400, "bad_request"),
        ("chat/completions", {"model": "a@b", "messages": FRANCE}, 400, "invalid_name"),
        ("chat/completions", {"messages": IMAGE}, 400, "images_unsupported"),
        ("chat/completions", {"model": "stories", "messages": FRANCE, "tools": [WEATHER]}, 400, "tools_unsupported"),
        ("chat/completions", {"model": "stories", "messages": FRANCE, "reasoning_effort": "low"}, 400,
         "thinking_unsupported"),
        ("chat/completions", {"model": "me/minilm", "messages": FRANCE}, 400, "completion_unsupported"),
        ("chat/completions", {"messages": FRANCE, "logit_bias": {"99999": 1}}, 400, "bad_request"),
        ("chat/completions", {"messages": FRANCE, "think": False, "response_format":
         {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}, 400, "bad_request"),
        ("chat/completions", {"messages": FRANCE, "truncate": False, "num_ctx": 8}, 400, "context_overflow"),
        ("chat/completions", {"messages": FRANCE, "tools": [WEATHER], "tool_choice":
         {"type": "function", "function": {"name": "get_time"}}}, 400, "unknown_tool"),
        ("chat/completions", {"messages": FRANCE, "tool_choice": "required"}, 400, "bad_request"),
        ("chat/completions", {"messages": FRANCE, "tool_choice": "required", "tools":
         [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties":
          {"a": {"not": {}}}}}}]}, 400, "bad_request"),
        ("completions", {"model": "stories", "prompt": [99999]}, 400, "bad_request"),
        ("completions", {"model": "stories", "prompt": [-1]}, 400, "bad_request"),
        ("completions", {"model": "stories", "prompt": [[1], [99999]], "echo": True}, 400, "bad_request"),
        ("completions", {"model": "stories", "prompt": ["a", "b"], "suffix": "c"}, 400, "insert_unsupported"),
        ("completions", {"model": "no", "prompt": [[1], [2]]}, 404, "model_not_found"),
        ("embeddings", {"model": "no", "input": "a"}, 404, "model_not_found"),
        ("embeddings", {"model": "me/minilm", "input": [99999999]}, 400, "bad_request"),
        ("embeddings", {"model": "me/minilm", "input": "a " * 1000, "truncate": False}, 400, "context_overflow"),
        ("score", {"model": "no", "text_1": "a", "text_2": "b"}, 404, "model_not_found"),
    ],
)  # fmt: skip
def test_refusals(http: httpx.Client, path: str, body: dict[str, Any], status: int, code: str) -> None:
    """The same error before a reply and before a stream."""
    for stream in (False, True):
        found = refusal(http.post(f"/v1/{path}", json={"model": "sprout", **body, "stream": stream}), status)
        assert found["code"] == code and found["message"]


def test_strict_and_run_record(http: httpx.Client) -> None:
    body = {"model": "sprout", "messages": FRANCE, "think": False, "max_token": 3, "user": "小明"}
    loose = http.post("/v1/chat/completions", json=body, headers={"X-Ollama-Run-Record": "true"}).json()
    assert loose["warnings"] == ['ignored field "max_token", did you mean "max_tokens"?']
    assert loose["run"]["user"] == "小明" and loose["run"]["options"]["temperature"] == 1
    strict = http.post("/v1/chat/completions", json=body, headers={"X-Ollama-Strict": "true"})
    assert "max_token" in refusal(strict)["message"]
    harmless = {**body, "metadata": {"a": "b"}, "store": True}
    del harmless["max_token"]
    assert http.post("/v1/chat/completions", json=harmless, headers={"X-Ollama-Strict": "true"}).status_code == 200


def test_a_client_that_disconnects_frees_the_slot(http: httpx.Client) -> None:
    endless = {"temperature": 2, "top_k": 100, "logit_bias": {"1": -100, "2": -100}, "num_predict": -1}
    body = {"model": "stories", "prompt": ["Once", "The"], "raw": True, "n": 2, "stream": True, "options": endless}
    with http.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()  # the reply is closed when nothing refers to it
        next(lines)
        assert http.get("/api/queue").json()["requests"]
    while http.get("/api/queue").json()["requests"]:
        pass
    assert post(http, "/v1/completions", model="stories", prompt="Once", max_tokens=2)["choices"]


def test_timings(http: httpx.Client) -> None:
    body = {"model": "sprout", "messages": FRANCE, "think": False}
    found = http.post("/v1/chat/completions", json=body, headers={"X-Timings": "true"}).json()
    times, usage = found["timings"], found["usage"]
    assert times["predicted_n"] == usage["completion_tokens"] and times["predicted_per_second"] > 0
    assert times["prompt_n"] + times["cache_n"] == usage["prompt_tokens"]
