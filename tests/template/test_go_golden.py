"""The interpreter against Go: the results of golden/gotemplate/cases.json, recorded by record.go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.errors import TemplateError
from ollama_nb.template.data import message_views, tool_views
from ollama_nb.template.execute import execute
from ollama_nb.template.parser import parse

FOLDER = Path(__file__).parent.parent / "golden" / "gotemplate"
FILE = json.loads((FOLDER / "cases.json").read_text("utf-8"))
CASES, DATA = FILE["cases"], FILE["data"]
OUTCOMES = json.loads((FOLDER / "outputs.json").read_text("utf-8"))

# Intended differences from Go: name → our result.
OURS = {
    "number 25": "template line 1: integer overflow or bad number syntax: '9223372036854775808'",  # already at parsing
    "json 16": '"\ufffd"',  # a lone surrogate becomes U+FFFD itself, not its escape
}


def call_of(data: dict[str, Any]) -> ToolCall:
    function = data["Function"]
    return ToolCall(function["Name"], function["Arguments"], data["ID"], function["Index"])


def message_of(data: dict[str, Any]) -> Message:
    return Message(
        data["Role"],
        data.get("Content", ""),
        data.get("Thinking", ""),
        tool_calls=tuple(map(call_of, data.get("ToolCalls", ()))),
        tool_name=data.get("ToolName", ""),
        tool_call_id=data.get("ToolCallID", ""),
    )


def root_of(case: dict[str, Any]) -> dict[str, Any]:
    root = dict(DATA[case["data"]]) if "data" in case else {}
    if case.get("chat"):
        root["Messages"] = message_views(list(map(message_of, root["Messages"])))
        root["Tools"] = tool_views(root["Tools"] or ())
    return root


def outcome(case: dict[str, Any]) -> tuple[str, str]:
    """Return ``output`` and the text, or ``parse`` or ``execute`` and our error."""
    try:
        template = parse(case["template"])
    except TemplateError as error:
        return "parse", error.message
    try:
        return "output", execute(template, root_of(case))
    except TemplateError as error:
        return "execute", error.message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_results_equal_go_s(case: dict[str, Any]) -> None:
    stage, text = outcome(case)
    if case["name"] in OURS:
        assert text == OURS[case["name"]]
        return
    expected = OUTCOMES[case["name"]]
    if "output" in expected:
        assert (stage, text) == ("output", expected["output"])
    else:
        assert stage == expected["stage"], f"{text}\nGo: {expected['error']}"
        assert text.startswith("template line ")


def test_every_case_is_recorded() -> None:
    assert {case["name"] for case in CASES} == OUTCOMES.keys()
