"""Constrained replies match their format, or the request is refused with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import ask, run

from ollama_nb.api.options import Options
from ollama_nb.engine.constraint import ConstraintCompiler
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import LlamaModel
from ollama_nb.engine.messages import Failed, Finished
from ollama_nb.engine.sampler import Sampler, SamplingParameters


def reply(engine: Engine, format: str, **options: Any) -> tuple[str, Finished | Failed]:
    (found,) = run(engine, ask(options=Options(**options), format=format))
    assert isinstance(found.last, Finished | Failed)
    return found.text, found.last


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, 'unsupported schema keyword "not" at $'),
        (
            {"properties": {"名": {"anyOf": [{}, {"type": "array", "uniqueItems": True}]}}},
            'unsupported schema keyword "uniqueItems" at $.properties.名.anyOf[1]',
        ),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"type": "string", "pattern": "(a+"}, "unclosed group"),
        ({"enum": []}, "Unsatisfiable"),
        ({"x-guidance": {"lenient": True}, "contains": {}}, 'keyword "contains" at $'),
    ],
    ids=str,
)
def test_unsupported_schemas_are_refused_with_the_reason(
    q8_engine: Engine, schema: dict[str, Any], reason: str
) -> None:
    text, last = reply(q8_engine, json.dumps(schema))
    assert isinstance(last, Failed) and last.status == 400 and not text
    assert last.message.startswith("invalid format: ") and reason in last.message


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 1}, {"seed": 2, "top_k": 0, "top_p": 1.0}], ids=str)
def test_a_reply_matches_its_schema(q8_engine: Engine, options: dict[str, Any]) -> None:
    text, last = reply(q8_engine, json.dumps(PERSON), **options)
    value = json.loads(text)
    assert isinstance(last, Finished) and last.reason == "stop"
    assert set(value) == {"name", "age", "colours"} and 0 <= value["age"] <= 120
    assert 1 <= len(value["colours"]) <= 3 and set(value["colours"]) <= {"red", "blue"}


def test_json_mode_writes_one_object(q8_engine: Engine) -> None:
    text, last = reply(q8_engine, "json", temperature=0.0, num_predict=200)
    assert text.startswith("{")
    assert isinstance(last, Finished)
    if last.reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_num_predict_limits_a_constrained_reply(q8_engine: Engine) -> None:
    text, last = reply(q8_engine, json.dumps(PERSON), temperature=0.0, num_predict=3)
    assert isinstance(last, Finished) and (last.reason, last.output_tokens) == ("length", 3)
    assert text.startswith("{")


@pytest.mark.parametrize(("more", "last"), [({}, b"}"), ({"additionalProperties": True}, b",")])
def test_an_object_ends_after_its_listed_properties(models: Path, more: dict[str, Any], last: bytes) -> None:
    model = LlamaModel(str(models / "stories260K-q8_0.gguf"), vocab_only=True)
    sampler = Sampler(SamplingParameters.from_options(Options(temperature=0.0), 64))
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, **more}
    constraint = ConstraintCompiler(model).compile(json.dumps(schema))
    pieces = model.pieces()
    for mark in (*(bytes([byte]) for byte in b'{"a": 1'), last):
        row = np.zeros(model.n_vocab, np.float32)
        row[pieces.index(b",")], row[pieces.index(b"}")] = 8, 7
        if mark != last:
            row[pieces.index(mark)] = 9
        assert pieces[constraint.sample(sampler, row, [])] == mark
    sampler.close()
    model.close()


# Regular expressions and choices


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(
    "pattern",
    [r"\d{3}-\d{4}", r"^[A-Z][a-z]{2,8}, (Lily|Tom)\.$", r"天[地人]{2}", r"(?i)yes|no", r"a/b\n", r"[^a-z\s]{4}"],
)
def test_the_whole_reply_matches_the_pattern(q8_engine: Engine, pattern: str, temperature: float) -> None:
    for seed in range(4):
        text, last = reply(q8_engine, "regex:" + pattern, temperature=temperature, seed=seed, num_predict=64)
        assert isinstance(last, Finished) and last.reason == "stop"
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    "format",
    ["choices:" + json.dumps(["sunny afternoon", "rainy morning"]), json.dumps({"enum": ["sunny day", "rainy day"]})],
    ids=["choices", "schema"],
)
def test_a_determined_ending_needs_no_decodes(q8_engine: Engine, format: str) -> None:
    """Only the first letters are a choice; the other tokens count as output but are not decoded."""
    before = q8_engine.counters["decodes"]
    text, last = reply(q8_engine, format, temperature=0.0)
    decodes = q8_engine.counters["decodes"] - before
    assert isinstance(last, Finished) and last.reason == "stop"
    assert text.strip('"') in ("sunny afternoon", "rainy morning", "sunny day", "rainy day")
    assert decodes <= 3 and last.output_tokens > decodes + 2


@pytest.mark.parametrize("num_predict", range(1, 9))
def test_a_determined_ending_respects_num_predict(q8_engine: Engine, num_predict: int) -> None:
    choices = ["sunny afternoon", "rainy morning"]
    whole, _ = reply(q8_engine, "choices:" + json.dumps(choices), temperature=0.0)
    text, last = reply(q8_engine, "choices:" + json.dumps(choices), temperature=0.0, num_predict=num_predict)
    assert isinstance(last, Finished) and last.output_tokens <= num_predict
    assert whole.startswith(text) and (last.reason == "stop") == (text == whole)


def test_stop_strings_and_logprobs_work_in_a_determined_ending(q8_engine: Engine) -> None:
    format = "choices:" + json.dumps(["sunny afternoon", "rainy morning"])
    text, last = reply(q8_engine, format, temperature=0.0, stop=("y ",))
    assert text in ("sunn", "rain") and isinstance(last, Finished) and last.reason == "stop"
    (shown,) = run(q8_engine, ask(format=format, temperature=0.0, logprobs=1))
    assert len(shown.logprobs) == shown.done.output_tokens > 1


def test_the_reply_is_one_of_the_choices(q8_engine: Engine) -> None:
    choices = ["a", "ab", 'say "hi"', "天", "a|b", "\\d", "(", "two\nlines"]
    found = {
        reply(q8_engine, "choices:" + json.dumps(choices), temperature=3.0, top_k=0, top_p=1.0, seed=seed)[0]
        for seed in range(60)
    }
    assert found <= set(choices) and len(found) > 3


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        ("choices:[]", "invalid choices: give at least one"),
        ('choices:["a",""]', "invalid choices: a choice must not be an empty string"),
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
def test_invalid_patterns_and_choices_are_refused(q8_engine: Engine, format: str, reason: str) -> None:
    text, last = reply(q8_engine, format)
    assert isinstance(last, Failed) and last.status == 400 and not text
    assert reason in last.message and len(last.message) < 200


def test_a_reply_that_no_token_can_continue_fails(q8_engine: Engine) -> None:
    text, last = reply(q8_engine, 'grammar:root ::= "a" dead\ndead ::= dead "b"')
    assert isinstance(last, Failed) and "no token of this model can follow" in last.message and text in ("", "a")
