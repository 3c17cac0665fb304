"""GBNF, regular expressions and choices: the language that they match, and what is refused before native code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.constraint import ConstraintCompiler
from ollama_nb.engine.grammars import MAX_DEPTH, MAX_RULES, expanded_size, gbnf_to_lark
from ollama_nb.engine.llama import LlamaModel
from ollama_nb.errors import BadRequest

JSON_GRAMMAR = r"""
# JSON, from llama.cpp
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


class Matcher:
    """Checks with the engine's own constraint, byte by byte, whether a text matches a format."""

    def __init__(self, model: LlamaModel) -> None:
        pieces = enumerate(model.pieces())
        self._tokens = {piece[0]: token for token, piece in pieces if len(piece) == 1 and not model.is_markup(token)}
        self._compiler = ConstraintCompiler(model)

    def accepts(self, format: str, text: str) -> bool:
        native = self._compiler.compile(format)._matcher
        tokens = [self._tokens[byte] for byte in text.encode()]
        if native.validate_tokens(tokens) != len(tokens):
            return False
        return bool(native.consume_tokens(tokens) and native.is_accepting())


@pytest.fixture(scope="module")
def matcher(models: Path) -> Matcher:
    return Matcher(LlamaModel(str(models / "stories260K-q8_0.gguf")))


@pytest.mark.parametrize(
    ("grammar", "inside", "outside"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["ye", "nope", "", "yesno"]),
        ('root ::= word "x"\nword ::= [a-z]+', ["ax", "xx", "abxx"], ["x", "ab"]),
        ('root ::= [a-z] "bd" | "abc"', ["abd", "abc", "zbd"], ["abe", "ab"]),
        ('root ::= list\nlist ::= list "," [0-9] | [0-9]', ["1", "1,2,3"], ["1,", ","]),
        ("root ::= [^\\n\"]{2,3} .", ["ab\n", "天地人。", "abc\""], ["ab", "\nab", "abcde"]),
        ('root ::= "\\x41\\u5929\\U0001F600\\t\\\\\\"\\[\\]"', ['A天😀\t\\"[]'], ["A"]),
        ("root ::= [\\]a\\[-]+", ["]a-[", "-"], ["b", ""]),
        ("root ::= [-a]+", ["-a"], ["b"]),
        ('root ::= ("a" | ) "b"? # end', ["", "a", "b", "ab"], ["ba"]),
        ('root ::= "a"\n     | "b"\nother ::= "c"', ["a", "b"], ["c"]),
        ('root ::= (\n "a" # one\n | "b"\n )\n\n', ["a", "b"], ["ab"]),
        ('root ::= my-rule_2\r\nmy-rule_2 ::= "a"{2}', ["aa"], ["a", "aaa"]),
        ('root ::= "a"{ 1 , }', ["a", "aaaa"], [""]),
        ('start ::= "s"\nroot ::= start start', ["ss"], ["s"]),
        (JSON_GRAMMAR, ['{"a": [1, -2.5e3, "x\\n天"], "b": {}}', "{}"], ['{"a"}', "[1]", '{"a": 01x}']),
    ],
)  # fmt: skip
def test_the_language_of_a_grammar(matcher: Matcher, grammar: str, inside: list[str], outside: list[str]) -> None:
    for text in inside:
        assert matcher.accepts("grammar:" + grammar, text), text
    for text in outside:
        assert not matcher.accepts("grammar:" + grammar, text), text


Part = tuple[str, str]
"""The same language as GBNF and as a Python pattern."""

LETTERS: st.SearchStrategy[Part] = st.sampled_from([(f'"{word}"', word) for word in ("a", "b", "ab", "ba")])
SETS: st.SearchStrategy[Part] = st.sampled_from([("[ab]", "[ab]"), ("[^a]", "[^a]"), (".", "."), ("[a-b]", "[a-b]")])


def _bigger(parts: st.SearchStrategy[Part]) -> st.SearchStrategy[Part]:
    two = st.tuples(parts, parts)
    marks = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,1}"])
    return st.one_of(
        two.map(lambda p: (f"({p[0][0]} {p[1][0]})", f"(?:{p[0][1]}{p[1][1]})")),
        two.map(lambda p: (f"({p[0][0]} | {p[1][0]})", f"(?:{p[0][1]}|{p[1][1]})")),
        st.tuples(parts, marks).map(lambda p: (f"({p[0][0]}){p[1]}", f"(?:{p[0][1]}){p[1]}")),
    )


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(LETTERS | SETS, _bigger, max_leaves=6), st.lists(st.text("abc", max_size=6), min_size=8, max_size=8)
)
def test_a_grammar_without_recursion_equals_a_regex(matcher: Matcher, part: Part, texts: list[str]) -> None:
    gbnf, pattern = part
    for text in texts:
        expected = re.fullmatch(pattern, text, re.DOTALL) is not None
        assert matcher.accepts(f"grammar:root ::= {gbnf}", text) == expected, text


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", 'rule "root" is missing'),
        ('rot ::= "a"', 'rule "root" is missing'),
        ("root ::= a", 'line 1: rule "a" is not defined'),
        ('root ::= "a"\nroot ::= "b"', 'line 2: rule "root" is defined twice'),
        ('root "a"', 'line 1: expected "::="'),
        ('root ::= "a', "line 1: the closing quote or bracket is missing"),
        ("root ::= [a", "line 1: the closing quote or bracket is missing"),
        ("root ::= []", "matches nothing"),
        ("root ::= [b-a]", "in reverse order"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\u12"', "unknown escape"),
        ('root ::= "\\uD800"', "is not a character"),
        ('root ::= "\\UFFFFFFFF"', "is not a character"),
        ('root ::= ("a"', 'expected ")"'),
        ('root ::= "a")', "unexpected ')'"),
        ('root ::= "a"**', "one repetition after another"),
        ('root ::= "a"{3,2}', "n at most m"),
        ('root ::= "a"{x}', "expected {n}"),
        ('root ::= "a"{1000000000000}', "expected {n}"),
        ('root ::= "a"{2001}', "2000 times at most"),
        ("root ::= <think>", "not supported"),
        ("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000, f"nested {MAX_DEPTH} levels"),
        ("root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(60_000)), "KiB"),
        ("\n".join(f'r{n} ::= "a"' for n in range(MAX_RULES + 1)), f"{MAX_RULES} rules at most"),
        ("root ::= " + "|".join('"abcdefgh"' for _ in range(12_000)), "parts at most"),
        ('root ::= root "a"', "nothing that this model can write"),
        ('root ::= "' + "\n" * 20_000, "line 1: the closing quote or bracket is missing"),
    ],
)
def test_invalid_grammars_are_refused_with_the_reason(matcher: Matcher, grammar: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(reason)) as caught:
        matcher.accepts("grammar:" + grammar, "")
    assert caught.value.message.startswith("invalid grammar: ") and len(caught.value.message) < 200


def test_a_chain_of_the_most_rules_compiles(matcher: Matcher) -> None:
    """The compiler recurses through the whole chain."""
    chain = "\n".join(f"r{n} ::= r{n + 1}" for n in range(MAX_RULES - 2))
    assert matcher.accepts(f'grammar:root ::= r0\n{chain}\nr{MAX_RULES - 2} ::= "b"', "b")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='root:=|()[]{}"\\^-.*+?,#\n 019aux天<!', max_size=80))
def test_any_text_is_translated_or_refused(text: str) -> None:
    try:
        assert gbnf_to_lark("root ::= " + text).startswith("%llguidance")
    except BadRequest as error:
        assert error.message.startswith("invalid grammar: ")


# Regular expressions and choices


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=5), st.text("ab"))
def test_choices_match_only_themselves(matcher: Matcher, choices: list[str], other: str) -> None:
    format = "choices:" + json.dumps(choices)
    assert all(matcher.accepts(format, choice) for choice in choices)
    assert matcher.accepts(format, other) == (other in choices)


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("", 0), ("abc", 3), ("a{3}", 3), ("a{2,}", 2), ("a{0,7}b", 8), ("a{0}", 1), ("(ab){3}c", 7), ("(a{3}b){2}", 8),
        ("((a{10}){10}){10}", 1000), ("a|b{4}", 5), ("(a|bc)*", 3), ("(a{2}){3}{4}", 24), (")a{2}", 3), ("(a", 1),
    ],
)  # fmt: skip
def test_size_with_repeats_expanded(pattern: str, parts: int) -> None:
    assert expanded_size(pattern) == parts


def test_brackets_in_sets_are_not_groups(matcher: Matcher) -> None:
    assert matcher.accepts("regex:" + "[(]" * 100 + r"\(" * 100, "(" * 200)
    with pytest.raises(BadRequest, match="nested 64 levels"):
        matcher.accepts("regex:" + "(" * 65 + "[)]" + ")" * 65, ")")


def test_numbers_in_escapes_and_sets_are_not_repeats(matcher: Matcher) -> None:
    assert matcher.accepts(r"regex:\x{4000}{2}[{]3000\}", "\u4000\u4000{3000}")
