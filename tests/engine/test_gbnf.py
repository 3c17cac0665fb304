"""GBNF: what it means, character by character, and what is refused before native code sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.gbnf import MAX_DEPTH, MAX_RULES, to_lark
from ollama_nb.engine.grammar import Grammars
from ollama_nb.engine.llama import Model
from ollama_nb.errors import BadRequest

JSON_GRAMMAR = r"""
# JSON, as llama.cpp writes it
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


class Judge:
    """Says whether a text is in a language, by the engine's own constraint, fed byte by byte."""

    def __init__(self, model: Model) -> None:
        pieces = enumerate(model.pieces())
        self._tokens = {piece[0]: token for token, piece in pieces if len(piece) == 1 and not model.is_markup(token)}
        self._grammars = Grammars(model)

    def accepts(self, format: str, text: str) -> bool:
        matcher = self._grammars.constraint(format)._matcher
        tokens = [self._tokens[byte] for byte in text.encode()]
        if matcher.validate_tokens(tokens) != len(tokens):
            return False
        return bool(matcher.consume_tokens(tokens) and matcher.is_accepting())


@pytest.fixture(scope="module")
def judge(models: Path) -> Judge:
    return Judge(Model(str(models / "stories260K-q8_0.gguf")))


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
def test_what_a_grammar_means(judge: Judge, grammar: str, inside: list[str], outside: list[str]) -> None:
    for text in inside:
        assert judge.accepts("grammar:" + grammar, text), text
    for text in outside:
        assert not judge.accepts("grammar:" + grammar, text), text


Part = tuple[str, str]
"""The same language as GBNF and as a pattern of Python's."""

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
def test_a_grammar_without_recursion_is_a_regular_expression(judge: Judge, part: Part, texts: list[str]) -> None:
    gbnf, pattern = part
    for text in texts:
        expected = re.fullmatch(pattern, text, re.DOTALL) is not None
        assert judge.accepts(f"grammar:root ::= {gbnf}", text) == expected, text


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", 'no rule "root"'),
        ('rot ::= "a"', 'no rule "root"'),
        ("root ::= a", 'line 1: rule "a" is not defined'),
        ('root ::= "a"\nroot ::= "b"', 'line 2: rule "root" is defined twice'),
        ('root "a"', 'line 1: expected "::="'),
        ('root ::= "a', "line 1: the end is missing"),
        ("root ::= [a", "line 1: the end is missing"),
        ("root ::= []", "matches nothing"),
        ("root ::= [b-a]", "ends before it begins"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\u12"', "unknown escape"),
        ('root ::= "\\uD800"', "no character"),
        ('root ::= "\\UFFFFFFFF"', "no character"),
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
        ('root ::= "' + "\n" * 20_000, "line 1: the end is missing"),
    ],
)
def test_what_is_refused(judge: Judge, grammar: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(reason)) as caught:
        judge.accepts("grammar:" + grammar, "")
    assert caught.value.message.startswith("invalid grammar: ") and len(caught.value.message) < 200


def test_as_many_rules_as_may_be_in_one_chain(judge: Judge) -> None:
    """The compiler goes down the whole chain by calling itself."""
    chain = "\n".join(f"r{n} ::= r{n + 1}" for n in range(MAX_RULES - 2))
    assert judge.accepts(f'grammar:root ::= r0\n{chain}\nr{MAX_RULES - 2} ::= "b"', "b")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='root:=|()[]{}"\\^-.*+?,#\n 019aux天<!', max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert to_lark("root ::= " + text).startswith("%llguidance")
    except BadRequest as error:
        assert error.message.startswith("invalid grammar: ")
