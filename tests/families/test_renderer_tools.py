"""Tools and values in the prompts of families: what is kept beyond Ollama, and arbitrary input."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb import families
from ollama_nb.api.messages import Message, Tool, ToolCall
from ollama_nb.errors import TemplateError
from ollama_nb.families import render
from ollama_nb.template.formatting import ArgumentDict, KeyOrderedDict, compact, indented, plain, quoted, spaced

USER = Message("user", "q")
WITHOUT_TOOLS = {"olmo3-think", "olmo3-32b-think"}
"""Their prompts have no tools."""
REJECTING = {"qwen3.8"}
"""They raise TemplateError for some conversations."""
OWN_NOTATION = {"gemma4", "gemma4-small", "gemma4-large", "functiongemma"}
"""Their notation supports few keys."""


def tool(properties: Any, **more: Any) -> Tool:
    parameters = {"type": "object", "properties": properties, **more}
    return {"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}


# Ollama drops unknown keys of a schema; these renderers keep them.


@pytest.mark.parametrize("name", sorted(families.renderers().keys() - WITHOUT_TOOLS - OWN_NOTATION))
def test_every_key_of_a_schema_is_kept(name: str) -> None:
    schema = {"type": "integer", "minimum": 3, "default": 4, "description": "n of it"}
    prompt = render(name, [USER], [tool({"n": schema}, additionalProperties=False)], None)
    for key in ("minimum", "default", "additionalProperties", "n of it"):
        assert key in prompt


@pytest.mark.parametrize("name", sorted(OWN_NOTATION - {"functiongemma"}))
def test_gemma_keeps_nullable(name: str) -> None:
    prompt = render(name, [USER], [tool({"n": {"type": "integer", "nullable": True}})], None)
    assert 'properties:{n:{nullable:true,type:<|"|>INTEGER<|"|>}}' in prompt


@pytest.mark.parametrize("name", sorted(families.renderers().keys() - WITHOUT_TOOLS))
def test_whole_numbers_of_json_keep_their_digits(name: str) -> None:
    call = ToolCall("f", {"list": [9007199254740993]})
    assert "9007199254740993" in render(name, [USER, Message("assistant", tool_calls=(call,))], [], None)


# Arbitrary input

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
SCHEMA_KEYS = st.sampled_from(
    ["type", "description", "properties", "items", "anyOf", "enum", "required", "$defs", "nullable", "x"]
)
SCHEMAS = st.dictionaries(SCHEMA_KEYS, JSON | st.dictionaries(SCHEMA_KEYS, JSON, max_size=4), max_size=5)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": JSON,
            "function": JSON | st.fixed_dictionaries({}, optional={"name": st.text(), "parameters": SCHEMAS | JSON}),
            "items": JSON,
        },
    ),
    max_size=2,
)
WORDS = st.text("abcd", min_size=1, max_size=6)
CALLS = st.builds(ToolCall, WORDS, st.dictionaries(st.text(), JSON, max_size=3), st.sampled_from(["", "1", "2"]))
MESSAGES = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "user", "user", "assistant", "tool", "developer", "critic"]),
        WORDS,
        st.just("") | st.text(),
        st.lists(st.just(b"i"), max_size=2).map(tuple),
        st.lists(CALLS, max_size=2).map(tuple),
        st.just("") | WORDS,
        st.sampled_from(["", "1", "3"]),
    ),
    max_size=6,
)
THINK = st.sampled_from([None, True, False, "low", "medium", "high", "max"])


@settings(max_examples=60, deadline=None)
@given(messages=MESSAGES, tools=TOOLS, think=THINK)
def test_any_conversation_renders_with_all_user_text(messages: list[Message], tools: list[Tool], think: Any) -> None:
    for name in sorted(families.renderers().keys()):
        try:
            prompt = render(name, messages, tools, think)
        except TemplateError:
            assert name in REJECTING
            continue
        at = 0
        for message in messages:
            if message.role == "user":
                assert message.content in prompt[at:]
                at = prompt.index(message.content, at)


# JSON styles


VALUE = KeyOrderedDict(b="<&>", a={"z": 1.0, "é": [True, None, 1e21, "\u2028"]}, o=ArgumentDict(y="<", x={}), e=[])


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (
            compact,
            r'{"b":"\u003c\u0026\u003e","a":{"z":1,"é":[true,null,1e+21,"\u2028"]},"o":{"y":"\u003c","x":{}},"e":[]}',
        ),
        (
            spaced,
            r'{"b": "\u003c\u0026\u003e", "a": {"z": 1, "é": [true, null, 1e+21, "\u2028"]}, '
            r'"o": {"y": "\u003c", "x": {}}, "e": []}',
        ),
        (
            plain,
            r'{"b": "<&>", "a": {"z": 1, "é": [true, null, 1e+21, "\u2028"]}, "o": {"y": "\u003c", "x": {}}, "e": []}',
        ),
        (
            quoted,
            r'{"b": "<&>", "a": {"z": 1, "é": [true, null, 1e+21, "\u2028"]}, "o": {"y": "<", "x": {}}, "e": []}',
        ),
    ],
)
def test_styles(style: Any, text: str) -> None:
    assert style(VALUE) == text


def test_indented() -> None:
    assert (
        indented(KeyOrderedDict(b=[1, {}], a=KeyOrderedDict()))
        == '{\n    "b": [\n        1,\n        {}\n    ],\n    "a": {}\n}'
    )


def test_lone_surrogates_are_replaced() -> None:
    assert plain("\ud800 é") == '"\ufffd é"'
