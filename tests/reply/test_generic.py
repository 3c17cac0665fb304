"""The parser for models that name no parser: thinking, text and tool calls, whole and split into pieces."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.api.events import Delta, ToolCalls
from ollama_nb.reply.generic import TemplateReplyParser

TAGS = ("<think>", "</think>")
Call = tuple[str, dict[str, Any]]


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


TOOLS = tuple(map(tool, ("get", "get_weather", "get_time", "say_hello", "say_hello_world", "add")))


def parse(*chunks: str, **setup: Any) -> tuple[str, str, list[Call]]:
    """Parse a reply into thinking, content and calls."""
    events = all_events(*chunks, **setup)
    deltas = [event for event in events if isinstance(event, Delta)]
    calls = [call for event in events if isinstance(event, ToolCalls) for call in event.calls]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    assert all(re.fullmatch(r"call_[a-z0-9]{8}", call.id) for call in calls)
    thinking, content = "".join(d.thinking for d in deltas), "".join(d.content for d in deltas)
    return thinking, content, [(call.name, dict(call.arguments)) for call in calls]


def all_events(*chunks: str, **setup: Any) -> list[Delta | ToolCalls]:
    parser = TemplateReplyParser(**setup)
    return [event for chunk in chunks for event in parser.feed(chunk)] + parser.end()


def in_pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


# Thinking


@pytest.mark.parametrize(
    ("chunks", "thinking", "content"),
    [
        (["<think>abc</th", "ink>def"], "abc", "def"),
        (["  abc <think>d</think>"], "", "  abc <think>d</think>"),
        (["<think> internal </think> world"], "internal ", "world"),
        (["\n <think>\n\n a\n</think>\n\nb \n"], "a\n", "b \n"),
        (["<think>a</think>b</think>c"], "a", "b</think>c"),
        (["<think>a<think>b</think>c"], "a<think>b", "c"),
        (["<think></think>c"], "", "c"),
        (["<think>a</thi"], "a</thi", ""),
        (["<thi"], "", "<thi"),
        (["  "], "", "  "),
        (["  <thx"], "", "  <thx"),
        (["<think>a</think>  "], "a", ""),
        (["<", "think", ">", " ", "a", "</", "think", ">", " ", "b", " "], "a", "b "),
        ([], "", ""),
    ],
)
def test_thinking(chunks: list[str], thinking: str, content: str) -> None:
    assert parse(*chunks, thinking=TAGS) == (thinking, content, [])


def test_thinking_opened_by_the_prompt() -> None:
    assert parse("\n a</think>\n\nb", thinking=TAGS, inside_thinking=True) == ("a", "b", [])
    assert parse("never closed", thinking=TAGS, inside_thinking=True) == ("never closed", "", [])


def test_without_tags_everything_is_content() -> None:
    assert parse("<think>a</think>b") == ("", "<think>a</think>b", [])


def test_thinking_and_content_of_one_piece_are_one_delta() -> None:
    assert all_events("<think>a</think>b", thinking=TAGS) == [Delta("b", "a")]


THINKS = st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "<", "</th", "ink>", "b<"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(THINKS, st.booleans(), st.integers(1, 5))
def test_thinking_in_any_pieces(words: list[str], inside: bool, size: int) -> None:
    text = "".join(words)
    whole = parse(text, thinking=TAGS, inside_thinking=inside)
    assert parse(*in_pieces(text, size), thinking=TAGS, inside_thinking=inside) == whole
    rest = text if inside else text.replace("<think>", "", 1) if text.lstrip().startswith("<think>") else text
    if whole[0] or inside:
        rest = rest.replace("</think>", "", 1)
    kept = "".join((whole[0] + whole[1]).split())
    assert kept in ("".join(rest.split()), "".join(rest.replace("</think>", "", 1).split()))


# Tools

WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
PARIS: Call = ("get_weather", {"city": "Paris"})
CASES: list[tuple[str, str, str, list[Call]]] = [
    # marker, reply, content, calls
    ("<tool_call>", "Hello! How can I help?", "Hello! How can I help?", []),
    ("<tool_call>", f"<tool_call>{WEATHER}</tool_call>", "", [PARIS]),
    ("<tool_call>", f"Let me look. <tool_call>\n{WEATHER}\n</tool_call>", "Let me look. ", [PARIS]),
    ("<tool_call>", f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{WEATHER}</tool_call>", "", [PARIS, PARIS]),
    ("<tool_call>", f"<tool_call>\n{WEATHER}\n{WEATHER}\n</tool_call>", "", [PARIS, PARIS]),
    ("<tool_call>", f"<tool_call>{WEATHER}</tool_call>\nDone (really).", "Done (really).", [PARIS]),
    (
        "<tool_call>",
        f"<tool_call>{WEATHER}</tool_call> and <tool_call>{WEATHER}</tool_call>!",
        "and !",
        [PARIS, PARIS],
    ),
    ("<tool_call>", '<tool_call>{"name": "say_hello", "arguments": {}}</tool_call>', "", [("say_hello", {})]),
    ("<tool_call>", '<tool_call>{"name": "say_hello"}</tool_call>', "", [("say_hello", {})]),
    ("<tool_call>", '<tool_call>{"name": "say_hello", "arguments": null}</tool_call>', "", [("say_hello", {})]),
    ("<tool_call>", '<tool_call>{"name": "say_hello_world", "arguments": {}}', "", [("say_hello_world", {})]),
    ("<tool_call>", '<tool_call>{"arguments": {"q": "get_time"}, "name": "get"}', "", [("get", {"q": "get_time"})]),
    ("<tool_call>", '<tool_call>{"name": "add", "parameters": {"a": 1, "b": 2.5}}', "", [("add", {"a": 1, "b": 2.5})]),
    ("<tool_call>", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', "", [("add", {"a": 1})]),
    ("<tool_call>", '<tool_call>{"type": "function", "function": {"name": "add", "arguments": {}}}', "", [("add", {})]),
    ("<tool_call>", '<tool_call>{"get_weather": {"city": "Paris"}}', "", [PARIS]),
    ("<tool_call>", '<tool_call>{"function": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
    ("<tool_call>", '<tool_call>{"calls": [{"name": "add", "arguments": {}}, {"name": "get", "arguments": {}}]}', "",
     [("add", {}), ("get", {})]),
    ("<tool_call>", '<tool_call>get_weather\n{"city": "Paris"}\n</tool_call>', "", [PARIS]),
    ("<tool_call>", '<tool_call>add {"arguments": {"a": 1}}</tool_call>', "", [("add", {"a": 1})]),
    ("<tool_call>", '<tool_call>{"name": "add", "arguments": {"t": "a } \\" { b", "n": {"x": [{}]}}}', "",
     [("add", {"t": 'a } " { b', "n": {"x": [{}]}})]),
    ("<tool_call>", '<tool_call>{"name": "add", "arguments": {"t": "a\nb"}}', "", [("add", {"t": "a\nb"})]),
    ("<tool_call>", '<tool_call>{"name": "add", "arguments": {"t": "\\ud83d\\ude00 \\ud800"}}', "",
     [("add", {"t": "😀 \ufffd"})]),
    # no calls: everything is content
    ("<tool_call>", "<tool_call>", "<tool_call>", []),
    ("<tool_call>", "a <tool", "a <tool", []),
    ("<tool_call>", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
     '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', []),
    ("<tool_call>", "<tool_call>{'name': 'get'}</tool_call>", "<tool_call>{'name': 'get'}</tool_call>", []),
    ("<tool_call>", '<tool_call>{"name": "get", "argu', '<tool_call>{"name": "get", "argu', []),
    ("<tool_call>", '<tool_call>{"name": "get", "arguments": [1]}', '<tool_call>{"name": "get", "arguments": [1]}', []),
    ("<tool_call>", '<tool_call>{"get": {"a": NaN}}', '<tool_call>{"get": {"a": NaN}}', []),
    ("<tool_call>", '<tool_call>{"get": {"a": 1e999}}', '<tool_call>{"get": {"a": 1e999}}', []),
    ("<tool_call>", "<tool_call>say_hello</tool_call>", "<tool_call>say_hello</tool_call>", []),
    # one valid call, one malformed
    ("<tool_call>", f"<tool_call>{{bad}}</tool_call>\n<tool_call>{WEATHER}", "{bad}</tool_call>\n", [PARIS]),
    ("<tool_call>", f'<tool_call>{WEATHER}</tool_call><tool_call>{{"name": "ge', '{"name": "ge', [PARIS]),
    # other markers
    ("[TOOL_CALLS] [", f"[TOOL_CALLS] [{WEATHER}, {WEATHER}][/TOOL_CALLS]", "", [PARIS, PARIS]),
    ("[TOOL_CALLS]", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "", [PARIS]),
    ("Action: ```json", f"I will. Action: ```json\n[{WEATHER}]\n```", "I will. ", [PARIS]),
    ("Action: ```json", 'Action: ```json\n[{"tool_name": "get", "parameters": {"a": 1}}]```', "", [("get", {"a": 1})]),
    (
        "<｜tool▁calls▁begin｜>",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Paris"}\n```'
        '<｜tool▁call▁end｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        "",
        [PARIS, ("get_time", {})],
    ),
    # brackets count only at the beginning
    ("{", WEATHER, "", [PARIS]),
    ("{", f"\n {WEATHER}", "\n ", [PARIS]),
    ("{", f"Sure: {WEATHER}", f"Sure: {WEATHER}", []),
    ("{", f"{WEATHER}\n{WEATHER}", "", [PARIS, PARIS]),
    ("{", f"{WEATHER}; {WEATHER}\nok", "ok", [PARIS, PARIS]),
    ("{", '{"answer": 42} is it. {"name": "get"}', '{"answer": 42} is it. {"name": "get"}', []),
    ("{", "{}", "{}", []),
    ("{", "{", "{", []),
    ("{", '{"name": "get_weather", "parameters": {"city": "Paris"}}}', "", [PARIS]),
    ("[", f"[{WEATHER}, {WEATHER}]", "", [PARIS, PARIS]),
    ("[", f"[{WEATHER}", "", [PARIS]),
    ("[", "[1, 2] then", "[1, 2] then", []),
    ("[", "[]", "[]", []),
    ("[", '[{"a": 1}] x', '[{"a": 1}] x', []),
    ("[", f"see [{WEATHER}]", f"see [{WEATHER}]", []),
    ("[", f"[[1], {WEATHER}] end", "[[1], end", [PARIS]),
]  # fmt: skip


@pytest.mark.parametrize(("marker", "reply", "content", "calls"), CASES)
def test_tools(marker: str, reply: str, content: str, calls: list[Call]) -> None:
    for size in (len(reply), 1, 3, 7):
        assert parse(*in_pieces(reply, size), tools=TOOLS, tool_marker=marker) == ("", content, calls)


@pytest.mark.parametrize(
    ("marker", "reply", "error"),
    [
        ("<tool_call>", "a <tool_call>{bad}</tool_call>", "no call of an offered tool was found"),
        ("<tool_call>", '<tool_call>{"name": "unknown", "arguments": {}}', "no call of an offered tool was found"),
        ("<tool_call>", '<tool_call>{"name": "get", "argu', "the tool call is not closed"),
        ("<tool_call>", f'<tool_call>{WEATHER}</tool_call><tool_call>{{"name": "ge', "the tool call is not closed"),
        ("<tool_call>", f"<tool_call>{WEATHER}</tool_call> and more", ""),
        ("<tool_call>", "a <tool", ""),
        ("{", '{"answer": 42} is it', ""),
        ("[", "[1, 2", ""),
    ],
)
def test_a_malformed_call_is_content_with_an_error(marker: str, reply: str, error: str) -> None:
    events = all_events(*in_pieces(reply, 3), tools=TOOLS, tool_marker=marker)
    assert [event.tool_error for event in events if isinstance(event, Delta) and event.tool_error] == [error][
        : bool(error)
    ]


def test_content_and_calls_of_one_piece_are_in_order() -> None:
    reply = f"First. <tool_call>{WEATHER}</tool_call>\nThen. <tool_call>{WEATHER}</tool_call>"
    kinds = [event if isinstance(event, Delta) else len(event.calls) for event in all_events(
        reply, tools=TOOLS, tool_marker="<tool_call>")]  # fmt: skip
    assert kinds == [Delta("First. "), 1, Delta("Then. "), 1]


def test_text_before_the_marker_is_not_held_back() -> None:
    parser = TemplateReplyParser(tools=TOOLS, tool_marker="<tool_call>")
    assert parser.feed("a <to") == [Delta("a ")]
    assert parser.feed("p") == [Delta("<top")]


def test_a_call_is_reported_as_soon_as_it_is_complete() -> None:
    parser = TemplateReplyParser(tools=TOOLS, tool_marker="<tool_call>")
    assert parser.feed(f"<tool_call>{WEATHER[:-1]}") == []
    (event,) = parser.feed("}")
    assert isinstance(event, ToolCalls)


def test_without_tools_calls_stay_text() -> None:
    reply = f"<tool_call>{WEATHER}"
    assert parse(reply, tool_marker="<tool_call>") == ("", reply, [])
    assert parse(reply, tools=TOOLS) == ("", reply, [])
    assert parse(reply, tools=({"type": "function"},), tool_marker="<tool_call>") == ("", reply, [])


def test_thinking_is_not_searched_for_calls() -> None:
    reply = f"<think><tool_call>{WEATHER}</think>ok<tool_call>{WEATHER}"
    thinking, content, calls = parse(*in_pieces(reply, 2), thinking=TAGS, tools=TOOLS, tool_marker="<tool_call>")
    assert (thinking, content, calls) == (f"<tool_call>{WEATHER}", "ok", [PARIS])


WORDS = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", "get", "get_weather", "{", "}", "[", "]", '"', "\\", '"name"', ": ", ", ",
         '"get"', '"arguments"', "{}", WEATHER, "text", " ", "\n", "<think>", "</think>", "<", "你", '{"name": "get"}']
    ),
    max_size=14,
)  # fmt: skip
MARKERS = st.sampled_from(["<tool_call>", "{", "[", "[TOOL_CALLS]", "get"])


@settings(max_examples=200, deadline=None)
@given(WORDS, MARKERS, st.integers(1, 6))
def test_any_pieces_give_the_same_reply(words: list[str], marker: str, size: int) -> None:
    text = "".join(words)
    setup: dict[str, Any] = {"thinking": TAGS, "tools": TOOLS, "tool_marker": marker}
    whole = parse(text, **setup)
    assert parse(*in_pieces(text, size), **setup) == whole
    if not whole[2]:  # without calls, no text may be missing
        tags = text.replace("<think>", "", 1).replace("</think>", "", 1)
        assert letters(whole[0] + whole[1]) in (letters(text), letters(tags), letters(text.replace("<think>", "", 1)))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.recursive(
    st.none() | st.booleans() | st.integers(-9999, 9999) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8)),
    st.integers(1, 9), st.sampled_from(["<tool_call>", "{", "["]))  # fmt: skip
def test_any_arguments_are_preserved(arguments: dict[str, Any], size: int, marker: str) -> None:
    body = json.dumps({"name": "get_time", "arguments": arguments}, ensure_ascii=False)
    reply = {"{": body, "[": f"[{body}]"}.get(marker, f"{marker}{body}</tool_call>")
    assert parse(*in_pieces(reply, size), tools=TOOLS, tool_marker=marker) == ("", "", [("get_time", arguments)])


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(
    "word", ["{", "}", "{}", '"', '{"', "\\", "[", "]", "<tool_call>", " ", "a", '{"a":"\\', "[[{"]
)
@pytest.mark.parametrize("marker", ["<tool_call>", "{", "["])
def test_long_malformed_text_is_content(word: str, marker: str) -> None:
    reply = marker + word * 3000
    assert parse(*in_pieces(reply, 11), tools=TOOLS, tool_marker=marker) == ("", reply, [])


def test_deeply_nested_json_is_content() -> None:
    deep = '<tool_call>{"name": "get", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001
    assert parse(deep, tools=TOOLS, tool_marker="<tool_call>") == ("", deep, [])
    nested = "<tool_call>" + '{"a":' * 900 + "1" + "}" * 900
    assert parse(nested, tools=TOOLS, tool_marker="<tool_call>") == ("", nested, [])
