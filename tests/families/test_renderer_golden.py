"""Every renderer against Ollama's own, as recorded in golden/renderers: one list of conversations for all of them.

A golden file maps a case's name to the prompt, to several where Ollama's own changes from call to call (it walks an
unordered map), or to ``{"error": …}``. The current date is recorded as 2026-01-02.

Differences from Ollama: error messages have our wording; keys of a tool's schema that Ollama drops are kept, and
whole numbers in JSON keep all their digits (``test_renderer_tools``); one order is kept where Ollama's changes.
"""

from __future__ import annotations

import base64
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ollama_nb import families
from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.errors import TemplateError
from ollama_nb.families import render

FOLDER = Path(__file__).parent.parent / "golden" / "renderers"
REFUSED = {"error": "our wording"}
FILE = json.loads((FOLDER / "cases.json").read_text("utf-8"))


def call_of(data: dict[str, Any]) -> ToolCall:
    return ToolCall(data["function"]["name"], data["function"]["arguments"], data.get("id", ""))


def message_of(data: dict[str, Any]) -> Message:
    return Message(
        data["role"],
        data["content"],
        data.get("thinking", ""),
        tuple(map(base64.b64decode, data.get("images", ()))),
        tuple(map(call_of, data.get("tool_calls", ()))),
        data.get("tool_name", ""),
        data.get("tool_call_id", ""),
    )


def outcome(name: str, case: dict[str, Any]) -> Any:
    messages = [message_of(message) for message in case["messages"]]
    tools = [FILE["tools"][tool] for tool in case["tools"]]
    try:
        prompt = render(name, messages, tools, case.get("think"))
    except TemplateError:
        return REFUSED
    return prompt.replace(f"Current date: {date.today()}", "Current date: 2026-01-02")


def expected(name: str) -> dict[str, Any]:
    outputs: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return outputs


@pytest.mark.parametrize("name", sorted(families.renderers().keys()))
def test_prompts_equal_ollama_s(name: str) -> None:
    recorded = expected(name)
    assert recorded.keys() == {case["name"] for case in FILE["cases"]}
    for case in FILE["cases"]:
        ours, theirs = outcome(name, case), recorded[case["name"]]
        if isinstance(theirs, list):
            assert ours in theirs, case["name"]
        else:
            assert ours == (REFUSED if isinstance(theirs, dict) else theirs), case["name"]


def test_every_name_is_recorded() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == families.renderers().keys() | {"cases"}
