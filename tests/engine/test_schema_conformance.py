"""Replies with a JSON Schema are valid by another implementation, or the request is refused by its keyword."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import validators
from pydantic import BaseModel
from support.schemas import ACCEPTED, REFUSED, REFUSED_TYPES, TYPES, Schema, schema_of

from ollama_nb.api.options import Options
from ollama_nb.engine.constraint import ConstraintCompiler
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.llama import LlamaModel
from ollama_nb.engine.messages import CompletionRequest, Failed, Finished, TextOutput
from ollama_nb.engine.sampler import Sampler, SamplingParameters

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"seed": 1},
    "any token": {"seed": 2, "temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
}
LIMIT = 400
FINISHING = 0.9
FINISHING_MODELS = 0.7
"""Least share of the replies that end by themselves; the others reach ``LIMIT`` tokens in an unbounded part."""


def replies(
    engine: Engine, schemas: Mapping[str, Schema | str], options: Mapping[str, Any]
) -> dict[str, tuple[str, Finished | Failed]]:
    """Run one request per schema together; return the text and the last output of each."""
    texts: defaultdict[int, str] = defaultdict(str)
    last: dict[int, Finished | Failed] = {}
    for id, schema in enumerate(schemas.values()):
        format = schema if isinstance(schema, str) else json.dumps(schema)
        limited = Options(num_predict=LIMIT, **options)
        engine.submit(CompletionRequest(id=id, prompt="A", format=format, options=limited))
    while engine.busy:
        for out in engine.step():
            if isinstance(out, TextOutput):
                texts[out.id] += out.text
            else:
                last[out.id] = out
    return {name: (texts[id], last[id]) for id, name in enumerate(schemas)}


def finished(found: Mapping[str, tuple[str, Finished | Failed]], least: float) -> dict[str, Any]:
    """Return the values of the replies that ended by themselves, at least the share ``least``; none may fail."""
    failed = {name: last.message for name, (_, last) in found.items() if isinstance(last, Failed)}
    assert not failed
    ended = {name: text for name, (text, last) in found.items() if isinstance(last, Finished) and last.reason == "stop"}
    cut = {name: text[-60:] for name, (text, _) in found.items() if name not in ended}
    assert len(ended) >= least * len(found), cut
    return {name: json.loads(text) for name, text in ended.items()}


def test_the_collection_is_complete() -> None:
    assert len(ACCEPTED) == 200 and len(set(map(json.dumps, ACCEPTED.values()))) == 200
    assert len(set(TYPES)) == 30


@pytest.mark.parametrize("options", SAMPLINGS.values(), ids=SAMPLINGS)
def test_replies_are_valid(q8_engine: Engine, options: dict[str, Any]) -> None:
    for name, value in finished(replies(q8_engine, ACCEPTED, options), FINISHING).items():
        schema = ACCEPTED[name]
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        problems = [error.message for error in kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(value)]
        assert not problems, (name, value)


@pytest.mark.parametrize("options", SAMPLINGS.values(), ids=SAMPLINGS)
def test_pydantic_models_parse_their_replies(q8_engine: Engine, options: dict[str, Any]) -> None:
    kinds: dict[str, type[BaseModel]] = {kind.__name__: kind for kind in TYPES}
    found = replies(q8_engine, {name: schema_of(kind) for name, kind in kinds.items()}, options)
    for name, value in finished(found, FINISHING_MODELS).items():
        kinds[name].model_validate(value, strict=False)


def test_a_property_name_cannot_be_disguised_by_escapes(models: Path) -> None:
    model = LlamaModel(str(models / "stories260K-q8_0.gguf"), vocab_only=True)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}
    constraint = ConstraintCompiler(model).compile(json.dumps(schema))
    pieces = model.pieces()
    sampler = Sampler(SamplingParameters.from_options(Options(temperature=0.0), 64))
    for mark in (b"{", b'"', b"\\"):
        row = np.zeros(model.n_vocab, np.float32)
        row[pieces.index(mark)] = 9
        assert constraint.sample(sampler, row, []) == pieces.index(mark)
    following = {pieces[token][:1] for token in constraint.allowed()}
    assert b"n" in following and b"u" not in following
    sampler.close()
    model.close()


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [*REFUSED.values(), *((schema_of(kind), keyword) for kind, keyword in REFUSED_TYPES)],
    ids=[*REFUSED, *(str(kind) for kind, _ in REFUSED_TYPES)],
)
def test_unsupported_schemas_are_refused_with_their_keyword(q8_engine: Engine, schema: Schema, keyword: str) -> None:
    text, last = replies(q8_engine, {"": schema}, {})[""]
    assert isinstance(last, Failed) and (last.status, text) == (400, "")
    assert last.message.startswith("invalid format: ") and keyword in last.message


def _doubling(key: str) -> Schema:
    parts = {f"p{n}": {key: [{"$ref": f"#/$defs/p{n + 1}"}] * 2} for n in range(30)}
    return {"$ref": "#/$defs/p0", "$defs": {**parts, "p30": {"enum": [1, 2]}}}


_NUMBERED: dict[str, Schema] = {f"p{number}": {} for number in range(10_000)}
BOMBS: dict[str, Schema | str] = {
    "10,000 properties": {"properties": _NUMBERED},
    "10,000 required properties": {"properties": _NUMBERED, "required": ["p1"]},
    "10,000 required names": {"type": "object", "required": list(_NUMBERED)},
    "500 optional properties": {"type": "object", "properties": {f"p{number}": {} for number in range(500)}},
    "10,000 items": {"type": "array", "prefixItems": [{}] * 10_000},
    "10,000 choices": {"anyOf": [{}] * 10_000},
    "depth of 1,000": '{"items":' * 1000 + "{}" + "}" * 1000,
    "long enum": {"enum": list(range(60_000))},
    "enum of objects": {"enum": [{"a": number} for number in range(10_000)]},
    "doubled references": _doubling("allOf"),
    "product of unions": {
        "allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(24)],
    },
    "nested repeats": {"type": "string", "pattern": "^(((a{1000}){1000}){1000}){1000}$"},
    "long repeat": {"type": "string", "pattern": "a{1000000000}"},
    "nested groups": {"type": "string", "pattern": "(" * 10_000 + "a" + ")" * 10_000},
    "long pattern": {"type": "string", "pattern": "|".join(f"a{n}.*b" for n in range(20_000))},
    "patterns at once": {"allOf": [{"pattern": f"{letter}.*{letter}"} for letter in "abcdefghijklmnopqrstuvwxyz"]},
    "patterns at once, hidden": {
        "allOf": [{"anyOf": [{"pattern": f"{letter}.*{letter}"}]} for letter in "abcdefghijklmnopqrstuvwxyz"],
    },
    "multiples at once": {"type": "integer", "allOf": [{"multipleOf": prime} for prime in (79, 83, 89, 97)]},
    "large multiple": {"type": "number", "multipleOf": 1.000003},
    "long chain": {
        "$ref": "#/$defs/p0",
        "$defs": {f"p{n}": {"$ref": f"#/$defs/p{n + 1}"} for n in range(3000)} | {"p3000": {}},
    },
    "reference to itself": {"$ref": "#"},
    "references in a ring": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "NaN": '{"type": "number", "minimum": NaN}',
    "number of 31 digits": {"type": "array", "minItems": 10**30},
}
HEAVY: dict[str, Schema] = {
    "doubled references": _doubling("anyOf"),
    "words": {"enum": [f"w{number}" for number in range(20_000)]},
    "long text": {"type": "string", "minLength": 10**9},
    "many items": {"type": "array", "minItems": 10**9},
    "states": {"type": "string", "pattern": "^[ab]*a[ab]{300}$"},
    "repeats": {"type": "string", "pattern": "(a?){500}a{500}"},
    "large constant": {"const": "x" * 50_000},
}


def test_oversized_schemas_are_refused_and_the_engine_continues(q8_engine: Engine) -> None:
    found = replies(q8_engine, BOMBS | {"": {"const": "alive"}}, {})
    text, last = found.pop("")
    assert isinstance(last, Finished) and text == '"alive"'
    accepted = {
        name: text for name, (text, last) in found.items() if not isinstance(last, Failed) or last.status != 400
    }
    assert not accepted


def test_large_schemas_within_the_limits_work(q8_engine: Engine) -> None:
    found = replies(q8_engine, HEAVY, {"temperature": 0.0})
    assert all(isinstance(last, Finished) for _, last in found.values()), found
