"""Regular expressions and choices as constraints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import ask, run
from test_gbnf import Judge

from ollama_nb.api.options import Options
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import Model
from ollama_nb.engine.output import FailOut, FinishOut
from ollama_nb.engine.patterns import written_out
from ollama_nb.errors import BadRequest


@pytest.fixture(scope="module")
def judge(models: Path) -> Judge:
    return Judge(Model(str(models / "stories260K-q8_0.gguf")))


def reply(engine: Engine, format: str, **options: Any) -> tuple[str, FinishOut | FailOut]:
    (found,) = run(engine, ask(options=Options(**options), format=format))
    assert isinstance(found.last, FinishOut | FailOut)
    return found.text, found.last


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(
    "pattern",
    [r"\d{3}-\d{4}", r"^[A-Z][a-z]{2,8}, (Lily|Tom)\.$", r"天[地人]{2}", r"(?i)yes|no", r"a/b\n", r"[^a-z\s]{4}"],
)
def test_the_whole_answer_matches(q8_engine: Engine, pattern: str, temperature: float) -> None:
    for seed in range(4):
        text, last = reply(q8_engine, "regex:" + pattern, temperature=temperature, seed=seed, num_predict=64)
        assert isinstance(last, FinishOut) and last.reason == "stop"
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    "format",
    ["choices:" + json.dumps(["sunny afternoon", "rainy morning"]), json.dumps({"enum": ["sunny day", "rainy day"]})],
    ids=["choices", "schema"],
)
def test_what_can_only_end_in_one_way_is_not_computed(q8_engine: Engine, format: str) -> None:
    """Only the first letters are a choice; the rest counts as written, but no decode is made for it."""
    before = q8_engine.counters["decodes"]
    text, last = reply(q8_engine, format, temperature=0.0)
    decodes = q8_engine.counters["decodes"] - before
    assert isinstance(last, FinishOut) and last.reason == "stop"
    assert text.strip('"') in ("sunny afternoon", "rainy morning", "sunny day", "rainy day")
    assert decodes <= 3 and last.output_tokens > decodes + 2


@pytest.mark.parametrize("most", range(1, 9))
def test_an_end_that_is_known_respects_the_limit(q8_engine: Engine, most: int) -> None:
    choices = ["sunny afternoon", "rainy morning"]
    whole, _ = reply(q8_engine, "choices:" + json.dumps(choices), temperature=0.0)
    text, last = reply(q8_engine, "choices:" + json.dumps(choices), temperature=0.0, num_predict=most)
    assert isinstance(last, FinishOut) and last.output_tokens <= most
    assert whole.startswith(text) and (last.reason == "stop") == (text == whole)


def test_a_known_end_keeps_stop_strings_and_the_probabilities_of_each_token(q8_engine: Engine) -> None:
    format = "choices:" + json.dumps(["sunny afternoon", "rainy morning"])
    text, last = reply(q8_engine, format, temperature=0.0, stop=("y ",))
    assert text in ("sunn", "rain") and isinstance(last, FinishOut) and last.reason == "stop"
    (shown,) = run(q8_engine, ask(format=format, temperature=0.0, logprobs=1))
    assert len(shown.logprobs) == shown.done.output_tokens > 1


def test_the_answer_is_one_of_the_choices(q8_engine: Engine) -> None:
    choices = ["a", "ab", 'say "hi"', "天", "a|b", "\\d", "(", "two\nlines"]
    found = {
        reply(q8_engine, "choices:" + json.dumps(choices), temperature=3.0, top_k=0, top_p=1.0, seed=seed)[0]
        for seed in range(60)
    }
    assert found <= set(choices) and len(found) > 3


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=5), st.text("ab"))
def test_choices_match_themselves_only(judge: Judge, choices: list[str], other: str) -> None:
    format = "choices:" + json.dumps(choices)
    assert all(judge.accepts(format, choice) for choice in choices)
    assert judge.accepts(format, other) == (other in choices)


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        ("choices:[]", "invalid choices: give at least one"),
        ('choices:["a",""]', "invalid choices: an empty text is no choice"),
        ("choices:" + json.dumps(["x"] * 5001), "invalid choices: 5000 choices"),
        ("choices:" + json.dumps(["x" * 70_000]), "invalid choices: 5000 choices and 64 KiB"),
        ("regex:(a", "invalid regex: "),
        ("regex:(?=a)b", "look-ahead and look-behind, is not supported"),
        (r"regex:(a)\1", "invalid regex: "),
        ("regex:" + "(" * 60_000 + "a" + ")" * 60_000, "invalid regex: it may have 64 KiB"),
        ("regex:" + "(" * 6_000 + "a" + ")" * 6_000, "invalid regex: groups may be nested 64 levels"),
        ("regex:(((a{1000}){1000}){1000})", "invalid regex: repeats within repeats come to more than 100000"),
        ("regex:" + "(a{2}" * 60 + "){2}" * 60, "invalid regex: repeats within repeats"),
        ("regex:" + "(x{5}){5}" * 6000, "invalid regex: repeats within repeats"),
        ("regex:a{1000000000}", "invalid regex: a part may be repeated 2000 times"),
        ("regex:a{2,3000}", "invalid regex: a part may be repeated 2000 times"),
        (r"regex:[^\x00-\x{10FFFF}]", "nothing that this model can write matches it"),
    ],
)
def test_what_is_refused(q8_engine: Engine, format: str, reason: str) -> None:
    text, last = reply(q8_engine, format)
    assert isinstance(last, FailOut) and last.status == 400 and not text
    assert reason in last.message and len(last.message) < 200


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("", 0), ("abc", 3), ("a{3}", 3), ("a{2,}", 2), ("a{0,7}b", 8), ("a{0}", 1), ("(ab){3}c", 7), ("(a{3}b){2}", 8),
        ("((a{10}){10}){10}", 1000), ("a|b{4}", 5), ("(a|bc)*", 3), ("(a{2}){3}{4}", 24), (")a{2}", 3), ("(a", 1),
    ],
)  # fmt: skip
def test_parts_with_repeats_written_out(pattern: str, parts: int) -> None:
    assert written_out(pattern) == parts


def test_a_reply_that_cannot_go_on_fails_and_says_so(q8_engine: Engine) -> None:
    text, last = reply(q8_engine, 'grammar:root ::= "a" dead\ndead ::= dead "b"')
    assert isinstance(last, FailOut) and "goes on from here" in last.message and text in ("", "a")


def test_brackets_in_sets_are_no_groups(judge: Judge) -> None:
    assert judge.accepts("regex:" + "[(]" * 100 + r"\(" * 100, "(" * 200)
    with pytest.raises(BadRequest, match="nested 64 levels"):
        judge.accepts("regex:" + "(" * 65 + "[)]" + ")" * 65, ")")


def test_numbers_in_escapes_and_sets_are_no_repetitions(judge: Judge) -> None:
    assert judge.accepts(r"regex:\x{4000}{2}[{]3000\}", "\u4000\u4000{3000}")
