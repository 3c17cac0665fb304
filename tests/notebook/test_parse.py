"""Parsing the line of a magic: examples, and properties for any text."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.errors import BadRequest
from ollama_nb.notebook.line import Line, Option, parse_line

OPTIONS = (
    Option("--output", "NAME", short="-o"),
    Option("--temperature", "VALUE"),
    Option("--num-predict", "VALUE"),
    Option("--think", "LEVEL", optional=True),
    Option("--reset"),
)


@pytest.mark.parametrize(
    ("line", "words", "options", "text"),
    [
        ("m hello  world ", ["m"], {}, "hello  world "),
        ("m Why is it so?", ["m"], {}, "Why is it so?"),
        ('m "two words"', ["m"], {}, "two words"),
        (r'm "say \"hi\" \n"', ["m"], {}, r'say "hi" \n'),
        ("m 'it is $5'", ["m"], {}, "it is $5"),
        ('m "a" and "b"', ["m"], {}, '"a" and "b"'),
        ("m it's fine", ["m"], {}, "it's fine"),
        ("m don't 'stop'", ["m"], {}, "don't 'stop'"),
        ('m ""', ["m"], {}, ""),
        ("m", ["m"], {}, None),
        ("m 你好，世界！", ["m"], {}, "你好，世界！"),
        ('m {"a": {"b": 1}} $HOME {x}', ["m"], {}, '{"a": {"b": 1}} $HOME {x}'),
        ("-o r m hi", ["m"], {"--output": ("r",)}, "hi"),
        ("m --output=r hi", ["m"], {"--output": ("r",)}, "hi"),
        ("m --temperature 0 hi -o x", ["m"], {"--temperature": ("0",)}, "hi -o x"),
        ("m --num_predict 5 hi", ["m"], {"--num-predict": ("5",)}, "hi"),
        ("m --temperature -1 hi", ["m"], {"--temperature": ("-1",)}, "hi"),
        ("m --think low hi", ["m"], {"--think": ("",)}, "low hi"),
        ("m --think=low hi", ["m"], {"--think": ("low",)}, "hi"),
        ("m --output='a b' hi", ["m"], {"--output": ("a b",)}, "hi"),
        ("m -o a -o b hi", ["m"], {"--output": ("a", "b")}, "hi"),
        ("m -- -5 + 3 = ?", ["m"], {}, "-5 + 3 = ?"),
        ("m -- --reset", ["m"], {}, "--reset"),
        ("-- m --reset", ["m"], {}, "--reset"),
        ('m "hi there" --reset -o r', ["m"], {"--reset": ("",), "--output": ("r",)}, "hi there"),
        ('m "hi" --reset now', ["m"], {}, '"hi" --reset now'),
        ('m "hi" - she said', ["m"], {}, '"hi" - she said'),
        ("m - a dash alone", ["m"], {}, "- a dash alone"),
    ],
)  # fmt: skip
def test_lines(line: str, words: list[str], options: dict[str, tuple[str, ...]], text: str | None) -> None:
    parsed = parse_line(line, OPTIONS, words=1)
    assert (list(parsed.words), dict(parsed.options), parsed.text) == (words, options, text)


def test_without_text_every_word_is_a_word() -> None:
    parsed = parse_line("""a 'b c' --reset d"e f" """, OPTIONS)
    assert parsed == Line(("a", "b c", "de f"), {"--reset": ("",)}, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m --temprature 0 hi", "unknown flag: --temprature. Did you mean `--temperature`?"),
        ("m -x hi", "unknown flag: -x."),
        ("m -5 + 3", "Put `--` before a text that begins with a dash."),
        ("m --output", "flag needs an argument: --output"),
        ("m --reset=yes hi", "`--reset` takes no value"),
        ("'m hi", "no closing quote: 'm hi"),
    ],
)
def test_bad_lines(line: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_line(line, OPTIONS, words=1)
    assert message in caught.value.message


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), min_size=1)


@given(TEXTS)
@settings(max_examples=200)
def test_text_is_verbatim(text: str) -> None:
    """The text after ``--`` is sent as typed, unless all of it is one quoted string."""
    parsed = parse_line(f"m -- {text}", OPTIONS, words=1)
    stripped = text.lstrip()
    if stripped[:1] in ("'", '"'):
        return
    assert (parsed.text or "") == stripped
    assert parsed.words == ("m",)


@given(TEXTS, st.lists(st.sampled_from(["--reset", "--think=low", "-o r", "--temperature 0.5"]), max_size=4))
@settings(max_examples=200)
def test_quoted_text_round_trips_with_options_before_and_after(text: str, options: list[str]) -> None:
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    before = parse_line(f"m {' '.join(options)} {quoted}", OPTIONS, words=1)
    after = parse_line(f"m {quoted} {' '.join(options)}", OPTIONS, words=1)
    assert before.text == after.text == text
    assert before.options == after.options


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), max_size=4))
@settings(max_examples=200)
def test_words_round_trip_through_a_shell_s_quoting(words: list[str]) -> None:
    assert parse_line(" ".join(["--", *map(shlex.quote, words)])).words == tuple(words)
