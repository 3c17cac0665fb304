"""Formats: what is refused before native code sees it, and that replies match."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.engines import ask, run

from ollama_nb.api.options import Options
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.output import FailOut, FinishOut
from ollama_nb.engine.schema import depth, read_schema
from ollama_nb.errors import BadRequest


def reply(engine: Engine, format: str, **options: Any) -> tuple[str, FinishOut | FailOut]:
    (found,) = run(engine, ask(options=Options(**options), format=format))
    assert isinstance(found.last, FinishOut | FailOut)
    return found.text, found.last


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("jsno", "neither"),
        ("[1]", "expected"),
        ("true", "expected"),
        (json.dumps(nested(64)), "nested 64 levels"),
        ('{"a":' * 60_000 + "1" + "}" * 60_000, "KiB"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "nested 64 levels"),
    ],
    ids=["no JSON", "a list", "a boolean", "too deep", "too long", "far too deep"],
)
def test_what_is_refused_before_native_code(text: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        read_schema(text)


def test_depth_counts_levels() -> None:
    assert [depth(value) for value in (1, {}, {"a": 1}, {"a": [1, {"b": 2}]})] == [0, 0, 1, 3]


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
def test_a_schema_that_cannot_be_kept_is_refused_with_its_reason(
    q8_engine: Engine, schema: dict[str, Any], reason: str
) -> None:
    text, last = reply(q8_engine, json.dumps(schema))
    assert isinstance(last, FailOut) and last.status == 400 and not text
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
    assert isinstance(last, FinishOut) and last.reason == "stop"
    assert set(value) == {"name", "age", "colours"} and 0 <= value["age"] <= 120
    assert 1 <= len(value["colours"]) <= 3 and set(value["colours"]) <= {"red", "blue"}


def test_json_mode_writes_one_object(q8_engine: Engine) -> None:
    text, last = reply(q8_engine, "json", temperature=0.0, num_predict=200)
    assert text.startswith("{")
    assert isinstance(last, FinishOut)
    if last.reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_constrained_reply_is_cut_by_its_limit_too(q8_engine: Engine) -> None:
    text, last = reply(q8_engine, json.dumps(PERSON), temperature=0.0, num_predict=3)
    assert isinstance(last, FinishOut) and (last.reason, last.output_tokens) == ("length", 3)
    assert text.startswith("{")
