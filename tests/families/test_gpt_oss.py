"""The parser of gpt-oss: headings in any order, names of tools in both directions, and what is held back."""

from __future__ import annotations

import pytest

from ollama_nb import families
from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.api.messages import Tool
from ollama_nb.families.gpt_oss import Heading, ToolNames, parse_heading, renamed
from ollama_nb.reply.output import ReplyContext


def tool(name: str) -> Tool:
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": {}}}


@pytest.mark.parametrize(
    ("text", "heading"),
    [
        ("assistant", Heading("assistant")),
        ("assistant<|channel|>analysis", Heading("assistant", "analysis")),
        ("assistant<|channel|>final <|constrain|>json", Heading("assistant", "final")),
        ("assistant<|channel|>final<|constrain|>json", Heading("assistant", "final")),
        ("assistant to=functions.f<|channel|>commentary", Heading("assistant", "commentary", "functions.f")),
        ("assistant<|channel|>commentary to=functions.f", Heading("assistant", "commentary", "functions.f")),
        ("assistant<|channel|>commentary to=f <|constrain|>json", Heading("assistant", "commentary", "f")),
        ("assistant<|channel|>commentary to=f<|constrain|>json", Heading("assistant", "commentary", "f")),
        ("to=functions.f<|channel|>commentary", Heading("tool", "commentary", "functions.f")),
        ("", Heading()),
        ("<|channel|>final", Heading("", "final")),
        ("assistant<|channel|>", Heading("assistant")),
        ("assistant<|channel|> final", Heading("assistant")),
    ],
)
def test_headings(text: str, heading: Heading) -> None:
    assert parse_heading(text) == heading


def test_tool_names_become_typescript_identifiers() -> None:
    own = ["get", "mail.send-all", "mail send_all", "mail_send_all", "9 lives!", "?!", "!!", "名前", "$x", "python",
           "browser.search"]  # fmt: skip
    in_prompt = ["get", "mail_send_all", "mail_send_all_2", "mail_send_all_3", "_9_lives", "unnamed", "unnamed_2",
                 "名前", "$x", "python", "browser.search"]  # fmt: skip
    tools = tuple(map(tool, own))
    assert [found["function"]["name"] for found in renamed(tools)] == in_prompt
    names = ToolNames(tools)
    assert [names.own(f"functions.{name}") for name in in_prompt] == own
    assert names.own("functions.other") == "other"
    assert renamed(tools)[1]["function"]["description"] == "x"
    assert renamed(({"type": "function"},)) == ({"type": "function"},)


def test_text_is_streamed() -> None:
    reader = families.parser("harmony").create(ReplyContext(think=True, tools=(tool("f.g"),)))
    assert reader.feed("<|channel|>analysis<|mess") == []
    assert reader.feed("age|>a <") == [Delta(thinking="a ")]
    assert reader.feed("|en") == []
    assert reader.feed("d|><|start|>assistant<|channel|>final<|message|>b") == [Delta("b")]
    assert reader.feed("<|end|><|start|>assistant<|channel|>commentary to=functions.f_g<|message|>{") == []
    (event,) = [*reader.feed('"a": 1}'), *reader.end()]
    assert isinstance(event, ToolCalls)
    assert [(call.name, call.arguments) for call in event.calls] == [("f.g", {"a": 1})]


def test_text_without_a_header_is_not_held_back() -> None:
    assert families.parser("harmony").create(ReplyContext()).feed("Hello") == [Delta("Hello")]
