"""Requests of OpenAI's API: what the bodies become, and which bodies are refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_nb.api.messages import Message, ToolCall, ToolChoice
from ollama_nb.errors import BadRequest, InvalidThink, Unsupported
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.openai import requests
from ollama_nb.server.dialects.openai.requests import ReplyForm

HI = [{"role": "user", "content": "hi"}]
PNG = "data:image/png;base64," + base64.b64encode(b"png").decode()
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def chat(**body: Any) -> requests.ChatCompletion:
    return requests.read_chat(Fields({"model": "m", "messages": HI, **body}, "openai.ChatCompletionRequest"))


def completion(**body: Any) -> requests.Completion:
    return requests.read_completion(Fields({"model": "m", **body}, "openai.CompletionRequest"))


def messages(*found: dict[str, Any]) -> tuple[Message, ...]:
    return chat(messages=list(found)).request.messages


def test_a_chat_request() -> None:
    found = chat(
        tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, n=3, logprobs=True, top_logprobs=2,
        stream=True, stream_options={"include_usage": True}, user="小明", truncate="messages", shift=True,
        keep_alive="5m", reasoning_format="none", think_budget=7, _debug_render_only=True,
        metadata={"a": "b"}, store=True, service_tier="auto",
    )  # fmt: skip
    request = found.request
    assert request.messages == (Message("user", "hi"),) and request.tools == (WEATHER,)
    assert (request.tool_choice, request.parallel_tool_calls, request.n) == (ToolChoice("required"), False, 3)
    assert (request.logprobs, request.top_logprobs, request.user) == (True, 2, "小明")
    assert (request.truncate, request.shift, request.keep_alive) == ("messages", True, 300)
    assert (request.think_budget, request.render_only, request.detailed, request.ignored) == (7, True, True, ())
    assert found.form == ReplyForm(stream=True, include_usage=True, reasoning="none")


def test_defaults() -> None:
    found = chat()
    request = found.request
    assert request.options == {"temperature": 1.0, "top_p": 1.0}
    assert (request.n, request.think, request.think_budget, request.format, request.choices) == (
        1,
        None,
        None,
        None,
        None,
    )
    assert (request.logprobs, request.truncate, request.detailed, request.keep_alive) == (False, True, False, None)
    assert found.form == ReplyForm()
    ours = completion(prompt="a").requests[0]
    zero = {"frequency_penalty": 0.0, "presence_penalty": 0.0}
    assert ours.options == {"temperature": 1.0, "top_p": 1.0, **zero}
    assert (ours.prompt, ours.tokens, ours.raw, ours.n, ours.logprobs) == ("a", (), False, 1, False)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"temperature": 0, "top_p": 0.5, "seed": 7}, {"temperature": 0, "top_p": 0.5, "seed": 7}),
        ({"options": {"temperature": 0.3, "top_k": 3}}, {"temperature": 0.3, "top_k": 3}),
        ({"options": {"temperature": 0.3}, "temperature": 0.4}, {"temperature": 0.4}),
        ({"max_tokens": 5}, {"num_predict": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"num_predict": 6}),
        ({"max_tokens": None, "max_completion_tokens": 0}, {"num_predict": 0}),
        ({"options": {"num_predict": 9}, "max_tokens": 5}, {"num_predict": 5}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": ["a", "天"]}, {"stop": ["a", "天"]}),
        ({"num_ctx": 64, "min_p": 0.1, "use_mmap": False}, {"num_ctx": 64, "min_p": 0.1, "use_mmap": False}),
        ({"logit_bias": {"5": -100, "7": 2.5}}, {"logit_bias": {"5": -100, "7": 2.5}}),
        ({"frequency_penalty": 1, "presence_penalty": -1}, {"frequency_penalty": 1, "presence_penalty": -1}),
    ],
)
def test_options(body: dict[str, Any], options: dict[str, Any]) -> None:
    assert chat(**body).request.options == {"temperature": 1.0, "top_p": 1.0, **options}


def test_a_conversation() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    bare = {"id": "c2", "function": {"name": "time", "arguments": ""}}
    assert messages(
        {"role": "developer", "content": "Be brief."},
        {"role": "USER", "content": [{"type": "text", "text": "天"}, {"type": "text", "text": "气"}]},
        {"role": "assistant", "content": None, "tool_calls": [call, bare], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3 °C"}]},
        {"role": "tool", "tool_call_id": "c2", "content": "noon", "name": "clock"},
        {"role": "tool", "tool_call_id": "c9", "content": "?"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning": "well"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "?"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": PNG.replace("image/png", "")}]},
        {"role": "user", "content": []},
    ) == (
        Message("system", "Be brief."),
        Message("user", "天\n气"),
        Message(
            "assistant",
            thinking="hm",
            tool_calls=(ToolCall("weather", {"city": "Oslo"}, "c1", 0), ToolCall("time", {}, "c2", 1)),
        ),
        Message("tool", "3 °C", tool_name="weather", tool_call_id="c1"),
        Message("tool", "noon", tool_name="clock", tool_call_id="c2"),
        Message("tool", "?", tool_call_id="c9"),
        Message("assistant", "no", "well"),
        Message("user", "?", images=(b"png",)),
        Message("user", images=(b"png",)),
        Message("user"),
    )


def test_a_tool_is_named_by_the_latest_call_with_its_id() -> None:
    def called(name: str) -> dict[str, Any]:
        return {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": {"name": name}}]}

    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    names = [message.tool_name for message in messages(called("a"), result, called("b"), result)]
    assert names == ["", "a", "", "b"]


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"response_format": {"type": "text"}}, "format", None),
        ({"response_format": {"type": "json_object"}}, "format", "json"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "format", SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
         "format", SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "format", "json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "format", {}),
        ({"format": "json"}, "format", "json"),
        ({"guided_json": SCHEMA}, "format", SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, "format", SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, "format", SCHEMA),
        ({"structured_outputs": {"json_object": True}}, "format", "json"),
        ({"structured_outputs": {"json_object": False}}, "format", None),
        ({"grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'root ::= "a"'),
        ({"regex": "a+"}, "regex", "a+"),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"choices": ["左", "right"]}, "choices", ("左", "right")),
        ({"guided_choice": ["左", "right"]}, "choices", ("左", "right")),
        ({"structured_outputs": {"choice": ["左", "right"]}}, "choices", ("左", "right")),
        ({"choices": []}, "choices", ()),  # refused by the service, which needs one
        ({"guided_json": None, "regex": None, "guided_choice": None}, "format", None),
    ],
)  # fmt: skip
def test_constraints(body: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(chat(**body).request, field) == value
    assert getattr(completion(prompt="a", **body).requests[0], field) == value


@pytest.mark.parametrize(
    ("body", "think"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "low"}, "low"),
        ({"reasoning_effort": "medium"}, "medium"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "xhigh"}, "max"),
        ({"reasoning_effort": "ultra"}, "max"),
        ({"reasoning_effort": "max"}, "max"),
        ({"reasoning_effort": ""}, None),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "low"),
        ({"reasoning": {}, "reasoning_effort": "high"}, None),
        ({"reasoning": None, "reasoning_effort": "high"}, "high"),
        ({"think": True, "reasoning_effort": "none"}, True),
        ({"think": "low"}, "low"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, "high"),
    ],
)
def test_thinking(body: dict[str, Any], think: Any) -> None:
    assert chat(**body).request.think == think
    assert chat(**body).request.ignored == ()


@pytest.mark.parametrize(
    ("body", "budget"),
    [
        ({"think_budget": 0}, 0), ({"reasoning_budget": 0}, 0), ({"reasoning_budget": -1}, None),
        ({"think_budget": 5, "reasoning_budget": 9}, 5), ({"reasoning_budget": 9}, 9), ({"think_budget": -2}, -2),
    ],
)  # fmt: skip
def test_the_budget_of_thinking(body: dict[str, Any], budget: int | None) -> None:
    assert chat(**body).request.think_budget == budget


@pytest.mark.parametrize(
    ("prompt", "requests_"),
    [
        (None, [("", ())]),
        ("", [("", ())]),
        ("天", [("天", ())]),
        (["a", "天"], [("a", ()), ("天", ())]),
        ([""], [("", ())]),
        ([1, 2], [("", (1, 2))]),
        ([[1, 2], [3]], [("", (1, 2)), ("", (3,))]),
        ([-1], [("", (-1,))]),  # refused by the service, which knows the vocabulary
    ],
)
def test_prompts(prompt: Any, requests_: list[tuple[str, tuple[int, ...]]]) -> None:
    assert [(found.prompt, found.tokens) for found in completion(prompt=prompt).requests] == requests_


def test_a_completion() -> None:
    found = completion(
        prompt=["a"], suffix="z", echo=True, n=2, best_of=5, logprobs=0, raw=True, truncate=False,
        response_format={"type": "json_object"}, chat_template_kwargs={"enable_thinking": False, "tools": 1},
        structured_outputs={"whitespace": "x"}, promt=1, reasoning={"summary": "auto"},
    )  # fmt: skip
    request = found.requests[0]
    assert (request.suffix, request.n, request.raw, request.truncate, request.format) == ("z", 5, True, False, "json")
    assert (request.logprobs, request.top_logprobs, request.think) == (True, 0, None)
    assert (found.n, found.echo, found.logprobs) == (2, True, True)
    assert sorted(request.ignored) == [
        'chat_template_kwargs: ignored field "tools"',
        'ignored field "promt", did you mean "prompt"?',
        "logprobs: the tokens of an echoed prompt have none",
        'reasoning: ignored field "summary"',
        'structured_outputs: ignored field "whitespace"',
    ]
    ranked = completion(prompt="a", best_of=2)
    assert (ranked.requests[0].logprobs, ranked.requests[0].top_logprobs, ranked.logprobs) == (True, 0, False)
    assert completion(prompt="a", best_of=1, stream=True).form.stream


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("", ("",)),
        ("a", ("a",)),
        (["a", ""], ("a", "")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3], "天"], ((1, 2), (3,), "天")),
    ],
)
def test_inputs_of_embeddings(value: Any, inputs: Any) -> None:
    body = {"model": "m", "input": value, "encoding_format": "BASE64", "dimensions": 4, "user": "u", "num_ctx": 9}
    found = requests.read_embeddings(Fields(body, "openai.EmbedRequest"))
    assert (found.request.inputs, found.base64, found.request.dimensions) == (inputs, True, 4)
    assert (found.request.truncate, found.request.options, found.request.ignored) == (True, {"num_ctx": 9}, ())


def test_pairs_of_texts() -> None:
    def pairs(first: Any, second: Any) -> list[tuple[str, tuple[str, ...]]]:
        body = Fields({"model": "m", "text_1": first, "text_2": second}, "openai.ScoreRequest")
        return [(found.query, found.documents) for found in requests.read_score(body)]

    assert pairs("a", ["b", "天"]) == [("a", ("b", "天"))]
    assert pairs(["a"], "b") == [("a", ("b",))]
    assert pairs(["a", "b"], ["c", "d"]) == [("a", ("c",)), ("b", ("d",))]


AUDIO = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}]}]
FILE = [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]


def image(url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]


def content(value: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": value}]


def arguments(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}]


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({"messages": []}, "messages", "[] is too short - 'messages'"),
        ({"messages": None}, "messages", "[] is too short - 'messages'"),
        ({"messages": "hi"}, "messages",
         "json: cannot unmarshal string into Go struct field ChatCompletionRequest.messages of type []openai.Message"),
        ({"messages": content(None)}, "messages.content", "invalid message content type: <nil>"),
        ({"messages": content(5)}, "messages.content", "invalid message content type: float64"),
        ({"messages": content(True)}, "messages.content", "invalid message content type: bool"),
        ({"messages": content({})}, "messages.content", "invalid message content type: map[string]interface {}"),
        ({"messages": content(["hi"])}, "messages.content", "invalid message format"),
        ({"messages": content([{"type": "text"}])}, "messages.content", "invalid message format"),
        ({"messages": content([{"type": "video"}])}, "messages.content", "invalid message format"),
        ({"messages": AUDIO}, "messages.content.input_audio",
         "audio input is not supported: send the message without input_audio"),
        ({"messages": FILE}, "messages.content.file", "file inputs are not currently supported"),
        ({"messages": image({"url": "https://x/y.png"})}, "messages.content.image_url",
         "image URLs are not currently supported, please use base64 encoded data instead"),
        ({"messages": image("ftp://x")}, "messages.content.image_url", "invalid image input"),
        ({"messages": image("data:image/png;base64,?")}, "messages.content.image_url", "invalid image input"),
        ({"messages": image({"url": 5})}, "messages.content", "invalid message format"),
        ({"messages": arguments("5")}, "messages.tool_calls.function.arguments", "invalid tool call arguments"),
        ({"messages": arguments("{")}, "messages.tool_calls.function.arguments", "invalid tool call arguments"),
        ({"n": 0}, "n", "n must be between 1 and 16"),
        ({"n": 99}, "n", "n must be between 1 and 16"),
        ({"n": 1.5}, "n",
         "json: cannot unmarshal number 1.5 into Go struct field ChatCompletionRequest.n of type int"),
        ({"temperature": "warm"}, "temperature",
         "json: cannot unmarshal string into Go struct field ChatCompletionRequest.temperature of type float64"),
        ({"temperature": True}, "temperature",
         "json: cannot unmarshal bool into Go struct field ChatCompletionRequest.temperature of type float64"),
        ({"stop": 5}, "stop", "invalid type for 'stop' field: float64"),
        ({"stop": ["a", None]}, "stop", "invalid type for 'stop' field: <nil>"),
        ({"logit_bias": {"5": 101}}, "logit_bias",
         "logit_bias: the value for token 5 must be a number from -100 to 100"),
        ({"logit_bias": {"5": "1"}}, "logit_bias",
         "logit_bias: the value for token 5 must be a number from -100 to 100"),
        ({"response_format": {"type": "xml"}}, "response_format.type",
         'response_format: the type "xml" is not one of text, json_object and json_schema'),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex",
         "constrain the reply in one way only: this request has response_format and guided_regex"),
        ({"guided_json": "{"}, "guided_json", "guided_json is not valid JSON: unexpected EOF"),
        ({"guided_choice": "left"}, "guided_choice",
         "json: cannot unmarshal string into Go struct field ChatCompletionRequest.guided_choice of type []string"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort",
         'invalid reasoning value: "enormous" (must be "minimal", "low", "medium", "high", "xhigh", "ultra", "max", '
         'or "none")'),
        ({"reasoning": {"effort": "x"}}, "reasoning.effort",
         'invalid reasoning value: "x" (must be "minimal",'),
        ({"reasoning_format": "inline"}, "reasoning_format",
         "invalid reasoning_format: use one of auto, deepseek, deepseek-legacy, none"),
        ({"stream_options": 5}, "stream_options",
         "json: cannot unmarshal number into Go struct field ChatCompletionRequest.stream_options of type "
         "openai.StreamOptions"),
        ({"tool_choice": "maybe"}, "tool_choice", 'invalid tool_choice "maybe"'),
        ({"keep_alive": True}, "keep_alive", "Unsupported type: 'bool'"),
    ],
)  # fmt: skip
def test_refused_chats(body: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**body)
    assert caught.value.message.startswith(text) and caught.value.field == field
    assert isinstance(caught.value, InvalidThink) == ("effort" in field)
    assert isinstance(caught.value, Unsupported) == field.endswith(("audio", "file"))


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({"prompt": []}, "prompt", "prompt must be a text"),
        ({"prompt": [[]]}, "prompt", "prompt must be a text"),
        ({"prompt": ["a", 1]}, "prompt", "prompt must be a text"),
        ({"prompt": [1, True]}, "prompt", "prompt must be a text"),
        ({"prompt": {}}, "prompt", "prompt must be a text"),
        ({"prompt": ["a"] * 1025}, "prompt", "prompt may have 1024 prompts at most"),
        ({"prompt": "a", "n": 3, "best_of": 2}, "best_of", "best_of must be at least n, which is 3"),
        ({"prompt": "a", "best_of": 17}, "best_of", "best_of must be between 1 and 16"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of", "best_of: the best replies are known at the end"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "logprobs must be between 0 and 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "json: cannot unmarshal bool"),
        ({"prompt": "a", "n": 0}, "n", "n must be between 1 and 16"),
    ],
)
def test_refused_completions(body: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        completion(**body)
    assert caught.value.message.startswith(text) and caught.value.field == field


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "invalid input"),
        ({"input": None}, "invalid input"),
        ({"input": []}, "invalid input"),
        ({"input": 5}, "invalid input type"),
        ({"input": [[]]}, "invalid input type"),
        ({"input": ["a", 1]}, "invalid input type"),
        ({"input": "a", "dimensions": -1}, "dimensions must be positive"),
        ({"input": "a", "encoding_format": "hex"},
         "Invalid value for 'encoding_format' = hex. Supported values: ['float', 'base64']."),
    ],
)  # fmt: skip
def test_refused_embeddings(body: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        requests.read_embeddings(Fields({"model": "m", **body}, "openai.EmbedRequest"))
    assert caught.value.message == text and caught.value.field


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", []), (None, "a"), (["a", "b"], ["c"]), ("a", 5), ({"x": 1}, "a"), ("", "a"), (["a", ""], ["b", "c"])],
)
def test_refused_scores(first: Any, second: Any) -> None:
    body = {"model": "m", "text_1": first, "text_2": second}
    with pytest.raises(BadRequest, match="text_"):
        requests.read_score(Fields(body, "openai.ScoreRequest"))


KEYS = st.sampled_from(["type", "text", "role", "content", "json", "effort", "function", "url", "schema"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.floats(-2, 2) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
NAMES = st.sampled_from(
    [
        "messages", "prompt", "n", "best_of", "stop", "tools", "tool_choice", "logit_bias", "logprobs", "top_logprobs",
        "response_format", "structured_outputs", "guided_json", "choices", "reasoning", "think", "stream_options",
        "chat_template_kwargs", "options", "keep_alive", "input", "dimensions", "text_1", "text_2", "max_tokens",
    ]
)  # fmt: skip


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_any_json_is_read_or_refused(body: dict[str, Any]) -> None:
    """Whatever the values are, the only exception is BadRequest."""
    readers: list[Any] = [
        requests.read_chat, requests.read_completion, requests.read_embeddings, requests.read_score,
    ]  # fmt: skip
    for reader in readers:
        try:
            found = reader(Fields({"model": "m", "messages": HI, **body}, "openai.Request"))
        except BadRequest as error:
            assert error.message and error.status == 400
        else:
            assert hash(str(found))
