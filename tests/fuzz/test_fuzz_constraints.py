"""T14, S9: compilers of constraints. A format is compiled or refused with BadRequest, in bounded time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from ollama_nb.engine.constraint import ConstraintCompiler
from ollama_nb.engine.llama import LlamaModel
from ollama_nb.errors import BadRequest

MODEL = Path(__file__).parents[1] / "models" / "stories260K-q8_0.gguf"
LONGEST = 20  # seconds of one compilation, on any machine
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
fuzzed = settings(
    max_examples=max(200, int(SECONDS * 20)),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def compiler() -> Iterator[ConstraintCompiler]:
    model = LlamaModel(str(MODEL), vocab_only=True)
    yield ConstraintCompiler(model)
    model.close()


def check(compiler: ConstraintCompiler, format: str) -> None:
    begun = time.monotonic()
    try:
        compiler.compile(format)
    except BadRequest as error:
        assert error.message.startswith("invalid ") and "\n" not in error.message and len(error.message) < 1000
    assert time.monotonic() - begun < LONGEST


_texts = st.text(max_size=20)
_numbers = st.one_of(
    st.integers(-(10**17), 10**17), st.floats(allow_nan=False, allow_infinity=False), st.integers(-3, 9)
)
_any: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_texts, inner, max_size=3)),
    max_leaves=5,
)
_types = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null", "text"])
_patterns = st.one_of(st.sampled_from(["^a+$", r"\d{2,5}", "(a|b)*c", "(?=x)", "[", "\\", "a{3}{4}", r"\p{L}"]), _texts)
_formats = st.sampled_from(["date", "date-time", "email", "uri", "duration", "ipv6", "path", "decimal"])


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    part = st.one_of(inner, inner, inner, _any)
    lists = st.lists(part, max_size=3)
    maps = st.dictionaries(st.sampled_from(["a", "b", "/", "~0", "é"]), part, max_size=3)
    counts = st.one_of(st.integers(-1, 5), st.integers(0, 10**17), _any)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(_types, st.lists(_types, max_size=3), _any),
            "properties": maps,
            "required": st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
            "additionalProperties": part,
            "patternProperties": st.dictionaries(_patterns, part, max_size=2),
            "items": st.one_of(part, lists),
            "prefixItems": lists,
            "anyOf": lists,
            "oneOf": lists,
            "allOf": lists,
            "$ref": st.sampled_from(["#", "#/$defs/a", "#/properties/a", "#/nowhere", "x", 3]),
            "$defs": maps,
            "enum": st.lists(_any, max_size=3),
            "const": _any,
            "pattern": st.one_of(_patterns, _any),
            "format": st.one_of(_formats, _any),
            **dict.fromkeys(
                ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), st.one_of(_numbers, _any)
            ),
            **dict.fromkeys(
                ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), counts
            ),
            "not": part,
        },
    )


@fuzzed
@given(schema=st.recursive(_any | _schemas(st.just({})), _schemas, max_leaves=6))
def test_schemas(compiler: ConstraintCompiler, schema: Any) -> None:
    check(compiler, json.dumps(schema))


_GBNF = [
    "root",
    " ::= ",
    "\n",
    "a",
    "b-1",
    '"x"',
    '"<tool_call>"',
    "[a-z]",
    "[^\\n]",
    ".",
    "|",
    "(",
    ")",
    "*",
    "+",
    "?",
    "{2,3}",
    "{9",
    "\\u00e9",
    "# c",
    '"',
    "[",
    "\\",
    " ",
    "root ::= ",
    "{,}",
    "{2000}",
    "-",
    "天",
    "😀",
    "<[1]>",
]
_REGEX = [
    "a",
    "[a-z]",
    "[^\\d]",
    "\\d",
    "\\w",
    "(",
    ")",
    "(?:",
    "(?i)",
    "|",
    "*",
    "+",
    "?",
    "{2}",
    "{1,2000}",
    "{,3}",
    "^",
    "$",
    "\\b",
    "\\",
    "[",
    "]",
    "\\p{L}",
    "\\x{41}",
    ".",
    "天",
    "(?=",
    "&",
    "~",
    "\\1",
    "\n",
    "/",
    "(?P<a>",
]


@fuzzed
@given(parts=st.lists(st.one_of(st.sampled_from(_GBNF), st.characters()), max_size=40), begin=st.booleans())
def test_grammars(compiler: ConstraintCompiler, parts: list[str], begin: bool) -> None:
    check(compiler, "grammar:" + "root ::= " * begin + "".join(parts))


@fuzzed
@given(parts=st.lists(st.one_of(st.sampled_from(_REGEX), st.characters()), max_size=30))
def test_patterns(compiler: ConstraintCompiler, parts: list[str]) -> None:
    check(compiler, "regex:" + "".join(parts))


@fuzzed
@given(choices=st.lists(_texts, max_size=5))
def test_choices(compiler: ConstraintCompiler, choices: list[str]) -> None:
    check(compiler, "choices:" + json.dumps(choices))


BOMBS = {
    "nested groups": "grammar:root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000,
    "65 groups": "grammar:root ::= " + "(" * 65 + '"a"' + ")" * 65,
    "5,001 rules": "grammar:root ::= r0\n" + "".join(f'r{number} ::= "a"\n' for number in range(5001)),
    "long text": "grammar:root ::= " + '"a" ' * 70_000,
    "chain": "grammar:root ::= r0\n"
    + "".join(f"r{number} ::= r{number + 1}\n" for number in range(4997))
    + 'r4997 ::= "a"',
    "left recursion": 'grammar:root ::= root root | "a" | root',
    "empty recursion": "grammar:root ::= root",
    "repeats": 'grammar:root ::= (("a"{2000}){2000}){2000}',
    "nested schema": '{"items":' * 65 + "{}" + "}" * 65,
    "long schema": json.dumps({"description": "x" * (256 << 10)}),
    "regex groups": "regex:" + "(" * 65 + "a" + ")" * 65,
    "regex repeats": "regex:((a{1000}){1000}){1000}",
    "regex states": "regex:[ab]*a[ab]{1500}.*b[ab]{1500}c",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_soon(compiler: ConstraintCompiler, name: str) -> None:
    """S9: nesting, rules, text and depth are limited before native code sees them."""
    check(compiler, BOMBS[name])


def test_limits_are_refused_with_their_place(compiler: ConstraintCompiler) -> None:
    for name, words in {
        "65 groups": "line 1: groups may be nested 64 levels deep at most",
        "5,001 rules": "rules at most",
        "long text": "KiB of text at most",
        "nested schema": "nested 64 levels deep at most",
        "long schema": "256 KiB",
        "regex groups": "groups may be nested 64 levels deep at most",
    }.items():
        with pytest.raises(BadRequest, match=words):
            compiler.compile(BOMBS[name])


def test_a_failure_of_the_compiler_is_a_bad_request(
    compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As native code raises it."""

    class Failing:
        grammar_from_regex = staticmethod(LLMatcher.grammar_from_regex)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise Panic("out of something\nsecond line")

    monkeypatch.setattr("ollama_nb.engine.constraint.LLMatcher", Failing)
    with pytest.raises(BadRequest, match=r"it cannot be compiled: out of something$"):
        compiler.compile("regex:abc")
