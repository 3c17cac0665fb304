"""Requests of Anthropic's API: JSON bodies to requests of the service."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ollama_nb.api.messages import Message, ToolCall, ToolChoice
from ollama_nb.api.requests import ChatRequest, TokenizeRequest
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.anthropic import requests
from ollama_nb.server.dialects.gojson import Fields

QUESTION = {"role": "user", "content": "为什么天空是蓝色的？"}
PIXEL = b"\x89PNG\r\n"
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PIXEL).decode()},
}
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "cache_control": {"type": "ephemeral"},
}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "北京"}}


def read(**fields: Any) -> ChatRequest:
    return requests.read_message(Fields({"model": "m", "max_tokens": 9, "messages": [QUESTION], **fields}, "M"))


def messages(*turns: dict[str, Any], **fields: Any) -> tuple[Message, ...]:
    return read(messages=list(turns), **fields).messages


def refused(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    return caught.value


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content, "cache_control": {"type": "ephemeral"}}


def test_a_plain_request() -> None:
    request = read(
        temperature=0.5, top_p=0.9, top_k=20, stop_sequences=["终", "END"], metadata={"user_id": "u1"}, stream=True
    )
    assert request == ChatRequest(
        model="m",
        messages=(Message("user", "为什么天空是蓝色的？"),),
        options={"temperature": 0.5, "top_p": 0.9, "top_k": 20, "stop": ["终", "END"], "num_predict": 9},
        think=False,
        user="u1",
        detailed=True,
    )
    assert read().options == {"num_predict": 9}  # the model's own defaults are in force


def test_system_as_text_and_as_blocks() -> None:
    assert messages(QUESTION, system="短")[0] == Message("system", "短")
    assert messages(QUESTION, system=[text("be "), text("brief")])[0] == Message("system", "be brief")
    assert messages(QUESTION, system=[])[0].role == "user"


def test_a_tool_round_trip() -> None:
    found = messages(
        QUESTION,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "anything"},
                {"type": "redacted_thinking", "data": "x"},
                text("I look it up."),
                CALL,
                {**CALL, "id": "toolu_2", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                text("Here."),
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("18 "), text("degrees")]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True, "content": "no such city"},
            ],
        },
    )
    assert found[1:] == (
        Message(
            "assistant",
            "I look it up.",
            "hm",
            tool_calls=(
                ToolCall("get_weather", {"city": "北京"}, "toolu_1", 0),
                ToolCall("get_weather", {"city": "Paris"}, "toolu_2", 1),
            ),
        ),
        Message("tool", "18 degrees", tool_name="get_weather", tool_call_id="toolu_1"),
        Message("tool", "Error: no such city", tool_name="get_weather", tool_call_id="toolu_2"),
        Message("user", "Here."),  # tool results come before the text of their turn
    )


def test_tool_results_alone_add_no_user_message() -> None:
    result = {"type": "tool_result", "tool_use_id": "other"}
    assert messages({"role": "user", "content": [result]}) == (Message("tool", tool_call_id="other"),)


def test_consecutive_messages_of_a_role_are_one_turn() -> None:
    first = {"role": "assistant", "content": [CALL]}
    second = {"role": "assistant", "content": [text("b"), {**CALL, "id": "toolu_2"}]}
    found = messages(QUESTION, {"role": "user", "content": "Why?"}, first, second)
    assert [message.role for message in found] == ["user", "assistant"]
    assert found[0].content == "为什么天空是蓝色的？\n\nWhy?"
    assert found[1].content == "b" and [call.index for call in found[1].tool_calls] == [0, 1]


def test_images_and_documents() -> None:
    document = {"type": "document", "title": "笔记", "source": {"type": "text", "data": "水在零度结冰。"}}
    parts = {"type": "document", "source": {"type": "content", "content": [text("a"), IMAGE]}}
    result = {"type": "search_result", "source": "https://x", "title": "T", "content": [text("found")]}
    (found,) = messages({"role": "user", "content": [document, IMAGE, parts, result, text("?")]})
    assert found.content == "笔记\n\n水在零度结冰。\n\na\n\nT\n\nhttps://x\n\nfound\n\n?"
    assert found.images == (PIXEL, PIXEL)
    screenshot = {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}
    assert messages({"role": "user", "content": [screenshot]})[0].images == (PIXEL,)


def test_unknown_blocks_are_ignored_with_a_warning() -> None:
    blocks = [{"type": "server_tool_use", "id": "x"}, {"type": "video"}, text("hi")]
    request = read(messages=[{"role": "user", "content": blocks}])
    assert request.messages == (Message("user", "hi"),)
    assert request.ignored == (
        'messages[0].content[0]: ignored block of type "server_tool_use"',
        'messages[0].content[1]: ignored block of type "video"',
    )


def test_fields_without_effect() -> None:
    assert read(service_tier="auto", cache_control={"type": "ephemeral"}, stream=False).ignored == ()
    assert read(container="c", top_logprobs=1).ignored == (
        'ignored field "container"',
        'ignored field "top_logprobs"',
    )


def test_tools() -> None:
    request = read(tools=[WEATHER, {"type": "custom", "name": "now"}])
    schema = WEATHER["input_schema"]
    assert request.tools == (
        {"type": "function", "function": {"name": "get_weather", "description": WEATHER["description"],
         "parameters": schema}},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    )  # fmt: skip
    assert (request.tool_choice, request.parallel_tool_calls) == (ToolChoice(), True)


@pytest.mark.parametrize(
    ("kind", "name", "commands"),
    [
        ("text_editor_20250124", "str_replace_editor", ["view", "create", "str_replace", "insert", "undo_edit"]),
        ("text_editor_20250728", "str_replace_based_edit_tool", ["view", "create", "str_replace", "insert"]),
    ],
)
def test_the_editor_of_anthropic(kind: str, name: str, commands: list[str]) -> None:
    (tool,) = read(tools=[{"type": kind, "name": name}]).tools
    properties = tool["function"]["parameters"]["properties"]
    assert tool["function"]["name"] == name and properties["command"]["enum"] == commands
    assert ("insert_text" in properties) == (kind == "text_editor_20250728")


def test_the_shell_of_anthropic() -> None:
    (tool,) = read(tools=[{"type": "bash_20250124", "name": "bash"}]).tools
    assert set(tool["function"]["parameters"]["properties"]) == {"command", "restart"}


def test_tools_of_anthropics_servers_are_ignored_with_a_warning() -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    request = read(tools=[search, WEATHER, {"type": "code_execution_20250825", "name": "code_execution"}])
    assert [tool["function"]["name"] for tool in request.tools] == ["get_weather"]
    assert request.ignored == (
        'tools[0]: ignored tool of type "web_search_20250305": this server does not run tools',
        'tools[2]: ignored tool of type "code_execution_20250825": this server does not run tools',
    )


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, ToolChoice(), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(), False),
        ({"type": "any", "disable_parallel_tool_use": False}, ToolChoice("required"), True),
        ({"type": "tool", "name": "get_weather"}, ToolChoice("required", ("get_weather",)), True),
        ({"type": "none"}, ToolChoice("none"), True),
    ],
)
def test_tool_choice(choice: dict[str, Any], expected: ToolChoice, parallel: bool) -> None:
    request = read(tools=[WEATHER], tool_choice=choice)
    assert (request.tool_choice, request.parallel_tool_calls) == (expected, parallel)


@pytest.mark.parametrize(
    ("thinking", "effort", "think", "budget"),
    [
        (None, None, False, None),
        (None, "low", "low", None),
        (None, "xhigh", "high", None),
        ({"type": "disabled"}, "high", False, None),
        ({"type": "enabled", "budget_tokens": 1024}, None, True, 1024),
        ({"type": "enabled", "budget_tokens": 0}, "max", False, 0),
        ({"type": "adaptive"}, None, True, None),
        ({"type": "adaptive"}, "max", "max", None),
    ],
)
def test_thinking(thinking: Any, effort: str | None, think: Any, budget: int | None) -> None:
    request = read(thinking=thinking, output_config={"effort": effort})
    assert (request.think, request.think_budget, request.ignored) == (think, budget, ())


def test_unknown_thinking_and_effort_are_ignored_with_a_warning() -> None:
    request = read(thinking={"type": "sometimes"}, output_config={"effort": "huge"})
    assert request.think is False and len(request.ignored) == 2
    assert any(text.startswith('output_config: ignored effort "huge"') for text in request.ignored)
    assert any(text.startswith('thinking: ignored type "sometimes"') for text in request.ignored)


def test_formats() -> None:
    schema = {"type": "object", "properties": {"城市": {"type": "string"}}}
    format = {"type": "json_schema", "schema": schema}
    for fields in ({"output_config": {"format": format}}, {"output_format": format}):
        request = read(**fields)
        assert request.format == schema and request.ignored == ()
    assert read().format is None


def test_count_tokens_reads_the_same_prompt() -> None:
    body = {"model": "m", "messages": [QUESTION], "system": "短", "tools": [WEATHER], "container": "c"}
    counted, warnings = requests.read_count(Fields(body, "C"))
    chat = read(system="短", tools=[WEATHER])
    assert counted == TokenizeRequest(model="m", messages=chat.messages, tools=chat.tools, think=False)
    assert warnings == ('ignored field "container"',)
    none, _ = requests.read_count(Fields({**body, "tool_choice": {"type": "none"}}, "C"))
    assert none.tools == ()


@pytest.mark.parametrize(
    ("fields", "message", "field"),
    [
        ({"model": ""}, "model is required", "model"),
        ({"max_tokens": None}, "max_tokens is required and must be positive", "max_tokens"),
        ({"max_tokens": 0}, "max_tokens is required and must be positive", "max_tokens"),
        ({"max_tokens": "9"}, "M.max_tokens of type int", "max_tokens"),
        ({"messages": None}, "messages is required", "messages"),
        ({"messages": []}, "messages is required", "messages"),
        ({"messages": "hi"}, "M.messages of type", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'messages[0].role: "tool"', "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "M.messages.content of type", "messages.content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "M.messages.content of type", "messages.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "of type string",
         "messages.content.text"),
        ({"system": 5}, "M.system of type", "system"),
        ({"stop_sequences": "x"}, "M.stop_sequences of type", "stop_sequences"),
        ({"tools": [{"input_schema": {}}]}, "a tool has no name", "tools"),
        ({"tools": [{"name": "f", "input_schema": []}]}, "M.tools.input_schema of type", "tools.input_schema"),
        ({"tools": [{"name": "f", "input_schema": {"properties": []}}]}, "tools.input_schema.properties of type",
         "tools.input_schema.properties"),
        ({"tools": [{"type": "computer_20250124", "name": "computer"}]}, 'type "computer_20250124" is not supported',
         "tools"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name", "tool_choice.name"),
        ({"tool_choice": {"type": "some"}}, 'invalid tool_choice type "some"', "tool_choice.type"),
        ({"tool_choice": "auto"}, "M.tool_choice of type", "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "budget_tokens", "thinking.budget_tokens"),
        ({"output_format": {"type": "json_object"}}, "output_format: expected", "output_format"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format: expected",
         "output_config.format"),
    ],
)  # fmt: skip
def test_bad_fields(fields: dict[str, Any], message: str, field: str) -> None:
    error = refused(**fields)
    assert message in error.message and error.field == field


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "tool_use", "name": "f"}, "tool_use block missing required 'id' field"),
        ({"type": "tool_use", "id": "t"}, "tool_use block missing required 'name' field"),
        ({"type": "tool_use", "id": "t", "name": "f", "input": "{}"}, "of type map[string]interface {}"),
        ({"type": "tool_result", "content": "x"}, "tool_result block missing required 'tool_use_id' field"),
        (
            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
            "invalid image source type: url. Only base64 images are supported.",
        ),
        ({"type": "image", "source": {"type": "base64", "data": "%%%"}}, "illegal base64 data at input byte 0"),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": ""}},
            'messages[0].content[0].source: documents of source type "base64" are not supported',
        ),
    ],
)
def test_bad_blocks(block: dict[str, Any], message: str) -> None:
    assert message in refused(messages=[{"role": "user", "content": [block]}]).message
