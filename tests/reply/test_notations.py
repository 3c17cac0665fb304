"""The notations of arguments: Python syntax, Gemma's, tagged, and text converted by a schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fuzz.fuzz_reply import TOOLS
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.reply.arguments import Schemas, objects_in, typed
from ollama_nb.reply.notations import BraceObjectParser, NotationError, parse_python_calls, parse_tagged_call

WORDS = {"true": True, "false": False, "null": None}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(-1e6, 1e6) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


def one_call(text: str) -> dict[str, Any]:
    (call,) = parse_python_calls(text)
    return dict(call.arguments)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("abc_", min_size=1), VALUES, max_size=4), st.booleans())
def test_python_literals_of_any_value(arguments: dict[str, Any], as_json: bool) -> None:
    write = json.dumps if as_json else python
    text = ", ".join(f"{key}={write(value)}" for key, value in arguments.items())
    assert one_call(f"[f({text})]") == arguments


def python(value: Any) -> str:
    """Format a value as Python does, with only the escapes that models use."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ", ".join(map(python, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"'{key}': {python(item)}" for key, item in value.items()) + "}"
    return repr(value)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (r"f(a='it\'s', b='x\ny', c='\q', d='\\', e='\u00e9\ud83d\ude00\ud800')",
         {"a": "it's", "b": "x\ny", "c": r"\q", "d": "\\", "e": "é😀\ufffd"}),
        ("f(a=word, b=two words, c=g(1, 2))", {"a": "word", "b": "two words", "c": "g(1, 2)"}),
        ("f(a=1e999, b=007)", {"a": "1e999", "b": 7}),
        ("f( a = [ ] , b = { } , )", {"a": [], "b": {}}),
    ],
)  # fmt: skip
def test_python_like_text(text: str, arguments: dict[str, Any]) -> None:
    assert one_call(text) == arguments


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "f",
        "f(",
        "f(a",
        "f(a=",
        "f(a=1",
        "f(1)",
        "f(a='x)",
        "f(a=[1)",
        "f(a={'b'})",
        "(a=1)",
        "f(a=" + "[" * 99,
    ],
)
def test_malformed_python_calls(text: str) -> None:
    with pytest.raises(NotationError):
        parse_python_calls(text)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("abc_", min_size=1), VALUES, max_size=4))
def test_gemma_arguments_of_any_value(arguments: dict[str, Any]) -> None:
    assert BraceObjectParser(gemma(arguments), '<|"|>', WORDS).parse() == arguments


def gemma(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, list):
        return "[" + ",".join(map(gemma, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{gemma(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize(
    "text",
    ["", "a:1", "{a:1", "{a}", "{a:1} x", "{:1}", "{a:[1}", "{a:" * 99 + "1" + "}" * 99, "{a:word}", "{a:1e999}"],
)
def test_malformed_gemma_arguments(text: str) -> None:
    with pytest.raises(NotationError):
        BraceObjectParser(text, '<|"|>', WORDS, texts=()).parse()


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("", False),
        ("<arg_key>a</arg_key><arg_value>b</arg_value>", False),
        ("f<arg_key>a</arg_key>", False),
        ("f<arg_key>a", False),
        ("f<arg_key></arg_key><arg_value>b</arg_value>", False),
        ("f<arg_value>b</arg_value>", False),
        ("f<arg_key>a</arg_key><arg_value>b</arg_value>c", False),
        ("f<arg_key>a<arg_key>b</arg_key>", False),
        ("f<arg_key>a</arg_key><arg_value>b<arg_value>c</arg_value>", False),
        ("f<arg_key>a</arg_key><arg_value>b", True),
        ("f<arg_key>a</arg_key>b</arg_value>", True),
    ],
)
def test_malformed_tagged_calls(text: str, strict: bool) -> None:
    with pytest.raises(NotationError):
        parse_tagged_call(text, strict=strict)


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("NULL", ("string",), None),
        ("5", (), "5"),
        ("True", ("boolean",), True),
        ("yes", ("boolean",), False),
        ("yes", ("boolean", "string"), "yes"),
        ("-5", ("integer",), -5),
        ("5.0", ("integer",), "5.0"),
        ("5.0", ("integer", "number"), 5),
        ("2.5", ("number",), 2.5),
        ("nan", ("number",), "nan"),
        ("1e999", ("number",), "1e999"),
        ("9223372036854775808", ("integer",), "9223372036854775808"),
        ("[1]", ("array",), [1]),
        ("[1]", ("object", "array"), [1]),
        ('{"a": 1}', ("object",), {"a": 1}),
        ("{bad", ("object",), "{bad"),
        ("[1]", ("object",), "[1]"),
    ],
)
def test_text_converted_by_types(text: str, types: tuple[str, ...], value: Any) -> None:
    assert typed(text, types) == value
    assert type(typed(text, types)) is type(value)


def test_schemas_of_malformed_tools() -> None:
    odd: tuple[Any, ...] = (
        {},
        {"function": None},
        {"function": {"name": "a", "parameters": None}},
        {"function": {"name": "b", "parameters": {"properties": {"x": 1, "y": {"anyOf": [1, {"type": "integer"}]}}}}},
        {"function": {"name": "c", "parameters": {"required": "x"}}},
    )
    schemas = Schemas(odd)
    assert schemas.names() == ("a", "b", "c")
    assert (schemas.types("b", "x"), schemas.types("b", "y"), schemas.types("z", "x")) == ((), ("integer",), ())
    assert schemas.typed("b", "y", "\n5\n") == 5
    assert (schemas.missing("c", ()), schemas.missing("nope", ())) == (None, None)
    assert Schemas(TOOLS).missing("get_weather", ("days",)) == "city"


def test_objects_in_text() -> None:
    assert objects_in('a {"b": "}"} c {{}} {"d') == ['{"b": "}"}', "{{}}"]
    assert objects_in("") == []
