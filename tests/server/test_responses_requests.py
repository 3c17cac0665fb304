"""Requests of the Responses API: JSON to values."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ollama_nb.api.messages import Message, ToolCall, ToolChoice
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.responses.items import conversation
from ollama_nb.server.dialects.responses.requests import ResponsesRequest, read_responses

PNG = base64.b64encode(b"png").decode()
QUESTION = {"role": "user", "content": "天空为什么是蓝色的？"}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "北京"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "3 °C"}
WEATHER = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": True}


def read(**fields: Any) -> ResponsesRequest:
    return read_responses(Fields({"model": "m", "input": "hi", **fields}, "ResponsesRequest"))


def messages(*items: Any, **fields: Any) -> tuple[Message, ...]:
    request = read(input=list(items), **fields)
    return request.chat_about(request.input).messages


def test_defaults() -> None:
    request = read()
    chat = request.chat_about(request.input)
    assert chat.messages == (Message("user", "hi"),)
    assert (request.stream, request.store, request.background) == (False, True, False)
    assert chat.options == {"temperature": 1.0}
    assert (chat.truncate, chat.think, chat.format, chat.logprobs, chat.ignored) == (False, None, None, False, ())
    assert chat.detailed and chat.tool_choice == ToolChoice() and chat.parallel_tool_calls


def test_fields() -> None:
    request = read(
        max_output_tokens=9, temperature=0, top_p=0.5, num_ctx=64, options={"seed": 3, "temperature": 2},
        reasoning={"effort": "minimal"}, truncation="auto", top_logprobs=2, user="u", keep_alive="1h",
        parallel_tool_calls=False, metadata={"a": "b"}, service_tier="flex", unknown=1,
        include=["reasoning.encrypted_content"],
    )  # fmt: skip
    assert request.chat.options == {"seed": 3, "temperature": 0, "top_p": 0.5, "num_ctx": 64, "num_predict": 9}
    assert (request.chat.think, request.chat.truncate, request.chat.user) == ("low", "messages", "u")
    assert (request.chat.logprobs, request.chat.top_logprobs, request.chat.keep_alive) == (True, 2, 3600.0)
    assert not request.chat.parallel_tool_calls and request.encrypted
    assert request.chat.ignored == ('ignored field "unknown"',)
    assert read(include=["message.output_text.logprobs"]).chat.logprobs


@pytest.mark.parametrize(
    ("format", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}, {"type": "object"}),
    ],
)
def test_text_formats(format: Any, constraint: Any) -> None:
    assert read(text={"format": format}).chat.format == constraint


def test_messages_of_all_kinds_of_content() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}]
    assert messages({"role": "user", "content": parts}) == (Message("user", "a", images=(b"png",)),)
    answer = [{"type": "output_text", "text": "b"}, {"type": "refusal", "refusal": "c"}]
    assert messages({"type": "message", "role": "assistant", "content": answer}) == (Message("assistant", "bc"),)
    ignored = {"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}
    assert messages(ignored, QUESTION)[0] == Message("user", "")


def test_instructions_and_leading_developer_messages_are_one_system_message() -> None:
    developer = {"role": "developer", "content": "二"}
    late = {"role": "system", "content": "late"}
    assert messages(developer, QUESTION, late, instructions="一") == (
        Message("system", "一\n\n二"),
        Message("user", "天空为什么是蓝色的？"),
        Message("system", "late"),
    )


def test_calls_and_outputs() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I need it."}]}
    said = {"role": "assistant", "content": "Wait."}
    second = {**CALL, "call_id": "c2", "arguments": ""}
    first_call = ToolCall("weather", {"city": "北京"}, "c1", 0)
    assert messages(QUESTION, thought, said, CALL, second, OUTPUT, {"type": "web_search_call"}) == (
        Message("user", "天空为什么是蓝色的？"),
        Message("assistant", "Wait.", "I need it.", tool_calls=(first_call, ToolCall("weather", {}, "c2", 1))),
        Message("tool", "3 °C", tool_name="weather", tool_call_id="c1"),
    )
    after = messages(CALL, OUTPUT, said)
    assert [message.role for message in after] == ["assistant", "tool", "assistant"]


def test_custom_calls_and_namespaces() -> None:
    patch = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** 补丁"}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "ok"}]}
    spaced = {**CALL, "call_id": "c2", "namespace": "mcp"}
    assert messages(patch, output, spaced) == (
        Message("assistant", tool_calls=(ToolCall("apply_patch", {"input": "*** 补丁"}, "c1"),)),
        Message("tool", "ok", tool_name="apply_patch", tool_call_id="c1"),
        Message("assistant", tool_calls=(ToolCall("mcp.weather", {"city": "北京"}, "c2"),)),
    )


@pytest.mark.parametrize(
    ("reasoning", "thinking"),
    [
        ({"encrypted_content": "e", "summary": [{"text": "s"}]}, "e"),
        ({"content": [{"type": "reasoning_text", "text": "c"}], "encrypted_content": "e"}, "c"),
        ({"summary": [{"text": "s"}, {"text": "t"}]}, "s\nt"),
    ],
)
def test_thinking_of_the_next_assistant_message(reasoning: Any, thinking: str) -> None:
    assert messages({"type": "reasoning", **reasoning}, {"role": "assistant", "content": "a"}) == (
        Message("assistant", "a", thinking),
    )
    assert messages({"type": "reasoning", **reasoning}, QUESTION)[0].role == "user"  # no answer followed


def test_a_call_that_was_cut_off_is_not_part_of_the_conversation() -> None:
    assert conversation("", [{**CALL, "id": "x", "status": "incomplete"}, *read().input]) == (Message("user", "hi"),)


def test_every_item_has_an_id_of_its_own() -> None:
    request = read(input=[QUESTION, CALL, {**OUTPUT, "id": "mine"}])
    ids = [item["id"] for item in request.input]
    token = request.id.removeprefix("resp_")
    assert ids == [f"msg_{token}i0", f"fc_{token}i1", "mine"] and read().id != read().id


def test_tools() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: WORD"}
    request = read(
        tools=[
            WEATHER,
            {"type": "custom", "name": "apply_patch", "description": "Edit files", "format": grammar},
            {"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "weather"}]},
            {"type": "web_search"},
        ]
    )
    weather, patch, member = (tool["function"] for tool in request.chat.tools)
    assert weather == {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert patch["parameters"]["required"] == ["input"] and "start: WORD" in patch["description"]
    assert member == {"name": "mcp.weather"}
    assert request.tools["apply_patch"].custom and request.tools["mcp.weather"].namespace == "mcp"
    assert request.chat.ignored == ('ignored tool "web_search": this server does not provide it',)


def test_tool_choices() -> None:
    tools = [WEATHER, {"type": "custom", "name": "edit"}, {"type": "namespace", "name": "n", "tools": [
        {"type": "function", "name": "f"}]}]  # fmt: skip
    for value, choice in (
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "weather"}, ToolChoice("required", ("weather",))),
        ({"type": "custom", "name": "edit"}, ToolChoice("required", ("edit",))),
        ({"type": "function", "name": "f"}, ToolChoice("required", ("n.f",))),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "edit"}]},
            ToolChoice("auto", ("edit",)),
        ),
    ):
        assert read(tools=tools, tool_choice=value).chat.tool_choice == choice


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [QUESTION, {**CALL, "arguments": "[]"}]}, "input[1].arguments"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"truncation": "some"}, "truncation"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"include": ["everything"]}, "include"),
        ({"metadata": {str(at): "" for at in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"background": True, "store": False}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as error:
        read(**fields)
    assert error.value.field == field


def test_a_request_without_input() -> None:
    request = read(input=None)
    with pytest.raises(BadRequest, match="input is required"):
        request.chat_about(request.input)


def test_the_response_repeats_the_request() -> None:
    tool = {**WEATHER, "description": "天气"}
    fields = {
        "instructions": "简短", "metadata": {"a": "b"}, "tools": [tool], "tool_choice": "none", "user": "u",
        "safety_identifier": "s", "prompt_cache_key": "k", "max_tool_calls": 2, "truncation": "auto",
        "previous_response_id": "resp_x", "reasoning": {"effort": "low"}, "text": {"verbosity": "low"},
    }  # fmt: skip
    echo = read(**fields).echo
    changed = {
        "reasoning": {"effort": "low", "summary": None},
        "text": {"verbosity": "low", "format": {"type": "text"}},
    }
    assert {name: echo[name] for name in fields} == {**fields, **changed}
    assert (echo["temperature"], echo["top_p"], echo["service_tier"]) == (1.0, None, "default")
