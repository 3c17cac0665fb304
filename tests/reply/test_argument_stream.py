"""Arguments of tool calls while they are written: ToolCallDelta events of all parsers, however the text is split."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.replies import in_pieces, read_all

from ollama_nb import families
from ollama_nb.api.events import Delta, ParsedEvent, ToolCallDelta, ToolCalls
from ollama_nb.api.messages import Tool
from ollama_nb.reply.generic import TemplateReplyParser
from ollama_nb.reply.output import ReplyContext, ReplyParser

TOOLS: tuple[Tool, ...] = tuple({"type": "function", "function": {"name": name}} for name in ("search", "天气"))
GENERIC = "a template"
BEGIN, END = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
NOTATIONS = {
    GENERIC: '<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>',
    "qwen3": '<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>',
    "qwen3-vl-instruct": '<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>',
    "cohere": '<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "{n}", "parameters": {a}}}\n]<|END_ACTION|>',
    "deepseek3": BEGIN + "{n}<｜tool▁sep｜>{a}" + END,
    "cogito": BEGIN + "function<｜tool▁sep｜>{n}\n```json\n{a}\n```" + END,
    "ministral": "[TOOL_CALLS]{n}[ARGS]{a}",
    "harmony": "<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{a}<|call|>",
}


def parser(name: str) -> ReplyParser:
    if name == GENERIC:
        created: ReplyParser = TemplateReplyParser(tools=TOOLS, tool_marker="<tool_call>")
    else:
        created = families.parser(name).create(ReplyContext(TOOLS, False, None))
    created.report_arguments()
    return created


def written(name: str, tool: str, arguments: str) -> str:
    return NOTATIONS[name].replace("{{", "{").replace("}}", "}").replace("{n}", tool).replace("{a}", arguments)


OWN_TAGS = (
    *(
        "</tool_call>",
        "<tool_call>",
        "<|END_ACTION|>",
        "<|START_ACTION|>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    *(
        "<｜tool▁call▁begin｜>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|call|>",
        "<|end|>",
        "<|start|>",
        "```",
        "</think>",
        "</tool_c",
    ),
)


@pytest.mark.parametrize("name", NOTATIONS)
@settings(max_examples=60)
@given(
    words=st.lists(st.sampled_from(OWN_TAGS) | st.text('ab天"\\\\{}', max_size=3), max_size=5),
    key=st.sampled_from(("a", *OWN_TAGS)),
    twice=st.booleans(),
    size=st.integers(1, 9),
)
def test_arguments_may_contain_the_tags_of_the_notation(
    name: str, words: list[str], key: str, twice: bool, size: int
) -> None:
    """T11: a call ends where its JSON ends, however the text is split."""
    arguments = {key: "".join(words), "nested": [{"text": words}]}
    text = written(name, "search", json.dumps(arguments, ensure_ascii=False))
    text += text if twice and name not in ("harmony", GENERIC) else ""
    for split in ([text], in_pieces(text, size), in_pieces(text, 1)):
        events = read_all(parser(name), split)
        calls = [dict(call.arguments) for event in events if isinstance(event, ToolCalls) for call in event.calls]
        assert calls == [arguments] * (text.count("nested")), events
        check(events)
        assert not any(event.content.strip() for event in events if isinstance(event, Delta))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_marker_ends_a_call_that_is_malformed(size: int) -> None:
    """The call after a malformed one is not lost, and neither is the text between them."""
    call = written("qwen3", "search", '{"a": "</tool_call>"}')
    text = '<tool_call>{"name": "search", "arguments": {"a": "open}}</tool_call> then ' + call
    events = read_all(families.parser("qwen3").create(ReplyContext(TOOLS, False, None)), in_pieces(text, size))
    calls = [dict(call.arguments) for event in events if isinstance(event, ToolCalls) for call in event.calls]
    assert calls == [{"a": "</tool_call>"}]
    content = "".join(event.content for event in events if isinstance(event, Delta))
    assert content.startswith('<tool_call>{"name": "search", "arguments": {"a": "open}}</tool_call>')
    assert content.endswith(("then", "then "))


@pytest.mark.parametrize("name", ["qwen3-coder", "qwen3.5"])
@pytest.mark.parametrize("end", ["</function>\n</tool_call>", "</tool_call>"])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_tags_that_models_leave_out(name: str, end: str, size: int) -> None:
    parameters = "<parameter=a>\nParis\n<parameter=b>\nx > y\n</parameter>\n<parameter=c>\n1\n"
    text = f"<tool_call>\n<function=search>\n{parameters}{end}"
    created = families.parser(name).create(ReplyContext(TOOLS, False, None))
    events = read_all(created, in_pieces(text, size))
    assert not any(event.tool_error for event in events if isinstance(event, Delta))
    calls = [dict(call.arguments) for event in events if isinstance(event, ToolCalls) for call in event.calls]
    assert [{key: str(value) for key, value in call.items()} for call in calls] == [
        {"a": "Paris", "b": "x > y", "c": "1"}
    ]


@pytest.mark.parametrize("text", ["<parameter=a>\nPar", "<parameter=a>\nParis\n<parameter=b", ""])
def test_a_call_that_is_cut_off_is_no_call(text: str) -> None:
    created = families.parser("qwen3-coder").create(ReplyContext(TOOLS, False, None))
    events = read_all(created, [f"<tool_call>\n<function=search>\n{text}"])
    assert not any(isinstance(event, ToolCalls) for event in events)


def joined(events: Sequence[ParsedEvent]) -> list[tuple[Any, ...]]:
    """The events without ids, neighbours of one kind joined, with the JSON text of each call's arguments."""
    found: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, ToolCalls):
            found += [("call", call.index, call.name, dict(call.arguments)) for call in event.calls]
        elif isinstance(event, ToolCallDelta):
            if not event.name and found[-1][:2] == ("piece", event.index):
                found[-1] = (*found[-1][:3], found[-1][3] + event.arguments)
            else:
                found.append(("piece", event.index, event.name, event.arguments))
        elif found and found[-1][0] == "text" and not event.tool_error:
            found[-1] = ("text", found[-1][1] + event.content)
        else:
            found.append(("error", event.content, event.tool_error) if event.tool_error else ("text", event.content))
    return found


def check(events: Sequence[ParsedEvent]) -> int:
    """Each call equals the text that was reported for it, under the same id. Return the number of calls."""
    texts: dict[str, str] = {}
    ids: dict[int, str] = {}
    count = 0
    for event in events:
        if isinstance(event, ToolCallDelta):
            if event.name:
                assert event.id
                assert event.index not in ids
                ids[event.index] = event.id
            key = ids[event.index]
            texts[key] = texts.get(key, "") + event.arguments
        elif isinstance(event, ToolCalls):
            for call in event.calls:
                assert ids[call.index] == call.id
                assert json.loads(texts[call.id]) == dict(call.arguments)
                count += 1
    return count


TEXTS = st.text("a\"\\{}[]</'ü天\n\t\x01😀,: ", max_size=9)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(-9, 9)
    | st.text("a\"\\{}[]</'ü天\n\t\x01😀,: ", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\天{', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", NOTATIONS)
@settings(max_examples=60)
@given(
    arguments=st.dictionaries(st.text('ab天"', max_size=4), VALUES, max_size=3),
    ascii_only=st.booleans(),
    indent=st.sampled_from((None, 1)),
    seed=st.integers(0, 1000),
)
def test_pieces_are_the_arguments_and_do_not_depend_on_the_split(
    name: str, arguments: dict[str, Any], ascii_only: bool, indent: int | None, seed: int
) -> None:
    text = written(name, "天气", json.dumps(arguments, ensure_ascii=ascii_only, indent=indent))
    whole = read_all(parser(name), [text])
    assert check(whole) == 1
    dice = random.Random(seed)
    cuts = sorted(dice.randrange(len(text)) for _ in range(6))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for split in (pieces, in_pieces(text, 1)):
        events = read_all(parser(name), split)
        assert check(events) == 1
        assert joined(events) == joined(whole)


@pytest.mark.parametrize("name", NOTATIONS)
def test_arguments_are_reported_while_they_are_written(name: str) -> None:
    text = written(name, "search", '{"query": "天气 \\u5317京", "limit": 3}')
    reader = parser(name)
    seen = [event for piece in text[: text.index("limit")] for event in reader.feed(piece)]
    assert len([event for event in seen if isinstance(event, ToolCallDelta)]) > 5
    assert joined(seen) == [("piece", 0, "search", '{"query": "天气 \\u5317京", "')]


@pytest.mark.parametrize("name", NOTATIONS)
def test_text_that_json_parsers_read_differently_is_changed(name: str) -> None:
    """Line breaks in strings and lone surrogates, which models write."""
    text = written(name, "search", '{"a": "x\ny\\ud800z", "b": "\\ud83d\\ude00\\\\"}')
    for size in (0, 1, 3):
        events = read_all(parser(name), in_pieces(text, size))
        assert check(events) == 1
        assert joined(events)[-1] == ("call", 0, "search", {"a": "x\ny\ufffdz", "b": "😀\\"})


@pytest.mark.parametrize("name", NOTATIONS)
def test_a_call_that_turns_out_malformed_is_reported(name: str) -> None:
    text = written(name, "search", '{"a": nothing}')
    whole = joined(read_all(parser(name), [text]))
    assert ("piece", 0, "search", '{"a": nothing}') in whole
    assert any(event[0] == "error" and event[2] for event in whole)
    assert not any(event[0] == "call" for event in whole)
    assert joined(read_all(parser(name), in_pieces(text, 1))) == whole


def test_the_next_call_after_a_malformed_one_has_an_index_of_its_own() -> None:
    text = written("qwen3", "search", '{"a": nothing}') + "\n" + written("qwen3", "天气", '{"b": 1}')
    events = joined(read_all(parser("qwen3"), in_pieces(text, 1)))
    assert [event[1] for event in events if event[0] == "piece"] == [0, 1]
    assert events[-1] == ("call", 1, "天气", {"b": 1})


@pytest.mark.parametrize("name", [name for name, text in NOTATIONS.items() if 'name": ' in text])
def test_arguments_that_are_written_twice(name: str) -> None:
    """The last ones count, but the first ones have been sent."""
    twice = '{"a": 1}, "arguments": {"a": 2}, "parameters": {"a": 2}'
    text = written(name, "search", '{"a": 1}').replace('{"a": 1}', twice)
    events = read_all(parser(name), in_pieces(text, 2))
    assert any(isinstance(event, Delta) and event.tool_error for event in events)


def test_several_calls_in_one_list() -> None:
    first = '{"tool_call_id": "0", "tool_name": "search", "parameters": {"a": "]}"}}'
    second = '{"tool_call_id": "1", "tool_name": "天气", "parameters": {}}'
    text = f"<|START_ACTION|>[\n    {first},\n    {second}\n]<|END_ACTION|>"
    events = read_all(parser("cohere"), in_pieces(text, 1))
    assert check(events) == 2
    assert joined(events) == [
        ("piece", 0, "search", '{"a": "]}"}'),
        ("piece", 1, "天气", "{}"),
        ("call", 0, "search", {"a": "]}"}),
        ("call", 1, "天气", {}),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (GENERIC, '<tool_call>{"arguments": {"a": "天"}, "name": "search"}'),
        (GENERIC, '<tool_call>{"name": "search", "arguments": "{\\"a\\": \\"天\\"}"}'),
        (GENERIC, '<tool_call>search\n{"a": "天"}'),
        ("qwen3", '<tool_call>{"name": "search", "arguments": "{\\"a\\": \\"天\\"}"}</tool_call>'),
        ("qwen3.5", "<tool_call>\n<function=search>\n<parameter=a>\n天\n</parameter>\n</function>\n</tool_call>"),
        ("olmo3", '<function_calls>search(a="天")</function_calls>'),
        ("glm-4.7", "<tool_call>search<arg_key>a</arg_key><arg_value>天</arg_value></tool_call>"),
        ("gemma4", '<|tool_call>call:search{a:<|"|>天<|"|>}<tool_call|>'),
    ],
)
def test_other_notations_report_the_complete_arguments(name: str, text: str) -> None:
    for size in (0, 1):
        events = read_all(parser(name), in_pieces(text, size))
        assert check(events) == 1
        assert joined(events) == [("piece", 0, "search", '{"a": "天"}'), ("call", 0, "search", {"a": "天"})]


@pytest.mark.parametrize("name", NOTATIONS)
def test_nothing_is_reported_unless_it_is_asked_for(name: str) -> None:
    reader = (
        TemplateReplyParser(tools=TOOLS, tool_marker="<tool_call>")
        if name == GENERIC
        else families.parser(name).create(ReplyContext(TOOLS, False, None))
    )
    events = read_all(reader, in_pieces(written(name, "search", '{"a": 1}'), 1))
    assert [type(event) for event in events] == [ToolCalls]
