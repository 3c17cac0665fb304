"""The JSON forms of tool_choice, those of chat completions and of responses."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_nb.api.messages import ToolChoice
from ollama_nb.errors import BadRequest
from ollama_nb.server.dialects.gojson import Fields
from ollama_nb.server.dialects.native import requests
from ollama_nb.server.dialects.tool_choice import read_parallel_tool_calls, read_tool_choice


def fields(**body: Any) -> Fields:
    return Fields(body, "ChatRequest")


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "天气"}}, ToolChoice("required", ("天气",))),
        ({"type": "function", "name": "f"}, ToolChoice("required", ("f",))),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": name}} for name in ("f", "g", "f")],
                },
            },
            ToolChoice("auto", ("f", "g")),
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
            ToolChoice("required", ("f",)),
        ),
    ],
)
def test_forms(value: Any, choice: ToolChoice) -> None:
    assert read_tool_choice(fields(tool_choice=value)) == choice


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("any", 'invalid tool_choice "any": expected "auto", "none", "required"'),
        (True, "invalid tool_choice true"),
        ({"type": "function"}, 'invalid tool_choice: {"type":"function"} does not name a function'),
        ({"type": "function", "function": {"name": ""}}, "does not name a function"),
        ({"type": "function", "function": {"name": 3}}, "does not name a function"),
        ({"type": "allowed_tools"}, 'allowed_tools needs a "mode"'),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, 'allowed_tools needs a "mode"'),
        ({"type": "allowed_tools", "mode": "none", "tools": [{"name": "f"}]}, 'allowed_tools needs a "mode"'),
        ({"type": "allowed_tools", "mode": "auto", "tools": ["f"]}, 'invalid tool_choice: "f" does not name'),
        ({"type": "web_search"}, 'invalid tool_choice {"type":"web_search"}'),
        (["f"], 'invalid tool_choice ["f"]'),
    ],
)
def test_wrong_forms(value: Any, message: str) -> None:
    with pytest.raises(BadRequest) as error:
        read_tool_choice(fields(tool_choice=value))
    assert message in error.value.message


def test_parallel_tool_calls() -> None:
    assert read_parallel_tool_calls(fields()) is True
    assert read_parallel_tool_calls(fields(parallel_tool_calls=None)) is True
    assert read_parallel_tool_calls(fields(parallel_tool_calls=False)) is False
    with pytest.raises(BadRequest):
        read_parallel_tool_calls(fields(parallel_tool_calls="no"))


def test_in_a_native_chat_request() -> None:
    request = requests.read_chat(fields(model="m", tool_choice="required", parallel_tool_calls=False))
    assert request.tool_choice == ToolChoice("required")
    assert not request.parallel_tool_calls
    assert not request.ignored
