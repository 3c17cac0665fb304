"""Excessive and malformed templates: each fails soon, with a TemplateError."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.errors import TemplateError
from ollama_nb.template.execute import Budget, execute
from ollama_nb.template.parser import Template, parse

DATA = {"name": "Ada", "n": 3, "list": ["a", "b", "c"], "map": {"a": 1}, "zh": "你好", "nil": None, "f": 2.5}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ range 1000000000 }}{{ end }}", "takes too many steps"),
        ("{{ range 100000 }}{{ range 100000 }}{{ end }}{{ end }}", "takes too many steps"),
        ("{{ range 9000000 }}aaaaaaaaaaaaaaaaaaaaaaaa{{ end }}", "too long"),
        ('{{ $x := "aaaaaaaa" }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}', "too long"),
        ("{{ $x := 'a' }}" + '{{ printf "%999999d%999999d%999999d%999999d%999999d" 1 2 3 4 5 }}', "too long"),
        ("{{ range 1000000 }}{{ $x := json $.big }}{{ end }}", "takes too many steps"),
        ("{{ range 1000000 }}{{ $x := slice $.many 0 }}{{ end }}", "takes too many steps"),
        ('{{ define "t" }}{{ template "t" . }}{{ end }}{{ template "t" . }}', "nested templates"),
        (
            '{{ define "t" }}{{ range 2 }}{{ template "t" . }}{{ end }}{{ end }}{{ template "t" . }}',
            "nested templates",
        ),
        ("{{ if 1 }}" * 5000 + "{{ end }}" * 5000, "levels of nesting"),
        ("{{ " + "(" * 5000 + ".x" + ")" * 5000 + " }}", "levels of nesting"),
        ("{{ if .x }}" + "{{ else if .x }}" * 5000 + "{{ end }}", "levels of nesting"),
        ("x" * (2 << 20), "at most"),
        ("{{ .x }}" * 100_000, "more than 50000 tokens"),
    ],
)
def test_bounded(template: str, words: str) -> None:
    data = {"big": "a" * 100_000, "many": ["a"] * 100_000}
    with pytest.raises(TemplateError, match=words):
        execute(parse(template), data, Budget(steps=200_000))


def test_deep_but_allowed_nesting_runs() -> None:
    nested = "{{ if . }}" * 99 + "x" + "{{ end }}" * 99
    assert execute(parse(nested), {"a": 1}) == "x"
    chained = "{{ if .no }}" + "{{ else if .no }}" * 90 + "{{ else }}y{{ end }}"
    assert execute(parse(chained), {}) == "y"


def test_recursion_through_nested_blocks_is_caught() -> None:
    body = "{{ if . }}" * 60 + '{{ template "t" . }}' + "{{ end }}" * 60
    with pytest.raises(TemplateError, match=r"too deeply|nested templates"):
        execute(parse('{{ define "t" }}' + body + '{{ end }}{{ template "t" . }}'), {"a": 1})


def test_error_names_the_line() -> None:
    with pytest.raises(TemplateError, match=r'^template line 3: function "foo" not defined$'):
        parse("a\n\n{{ foo }}")
    with pytest.raises(TemplateError, match=r"^template line 2: can't evaluate field x in type string$"):
        execute(parse("a\n{{ .name.x }}"), DATA)


def test_template_without_argument_is_rejected() -> None:
    with pytest.raises(TemplateError, match="undefined template specified"):
        parse('{{ define "x" }}y{{ end }}{{ template "x" }}')


def test_python_is_out_of_reach() -> None:
    for path in (".name.__class__", ".__class__", ".list.append", ".map.keys", ".map.__init__.__globals__"):
        try:
            assert "class" not in execute(parse("{{ " + path + " }}"), DATA)
        except TemplateError:
            continue


def test_lone_surrogates_in_data_do_not_break_the_prompt() -> None:
    text = execute(parse("{{ .x }} {{ len .x }} {{ json .x }} {{ slice .x 0 1 }}"), {"x": "a\ud800b"})
    text.encode()


# Words for random templates, most of which are valid.
ACTIONS = (
    "{{ .list }} {{ .n | print }} {{ $x := .n }} {{ $x = 2 }} {{ $x }} {{ if .n }} {{ if eq .n 3 }} {{ else }} "
    "{{ end }} {{ else if .nil }} {{ else with .zh }} {{ range .list }} {{ range $i, $v := .map }} {{ with .map }} "
    '{{ break }} {{ continue }} {{ define "t" }} {{ template "t" . }} {{ block "b" . }} {{/* c */}} {{- -}} {{ }}'
)
PIECES = (
    "{{ }} {{- -}} .name .Missing .zh .f $ $x | ( ) , := = nil true 3 -1 2.5 1e9 'c' `r` \"s\" len index slice eq lt "
    'and or not print printf json html call "%d%s%v%5.1f" /* */ % \\ 你 text'
)
WORDS = st.sampled_from([*re.findall(r"\{\{.*?\}\}", ACTIONS), *PIECES.split(), " ", "\n"])
TEMPLATES = st.one_of(
    st.text(max_size=80),
    st.lists(WORDS, max_size=25).map(" ".join),
    st.lists(WORDS, max_size=25).map("".join),
)
VALUES = st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.none(), st.booleans()), max_size=6)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80), st.lists(WORDS, max_size=25).map(" ".join), st.lists(WORDS, max_size=25).map("".join)
    )
)
def test_any_template_renders_or_raises_template_error(text: str) -> None:
    try:
        made = execute(parse(text), DATA, Budget(steps=5_000, output=1 << 16))
    except TemplateError:
        return
    made.encode()


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=30), st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.none(), st.booleans()))
)
def test_printf_accepts_any_values(form: str, values: list[object]) -> None:
    args = " ".join(f"(index $.v {at})" for at in range(len(values)))
    execute(parse("{{ printf .form " + args + " }}"), {"form": form, "v": values}).encode()


def test_a_template_is_parsed_once() -> None:
    first = parse("{{ .x }} once")
    assert isinstance(first, Template)
    assert parse("{{ .x }} once") is first
