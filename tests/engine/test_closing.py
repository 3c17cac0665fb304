"""Objects that list their properties have no others, where one schema alone speaks of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_nb.api.options import Options
from ollama_nb.engine.grammar import Grammars
from ollama_nb.engine.llama import Model
from ollama_nb.engine.sampler import Recipe, Sampler
from ollama_nb.engine.schema import read_schema

A = {"properties": {"a": {"type": "integer"}}}
B = {"properties": {"b": {"type": "integer"}}}
CLOSED = {"additionalProperties": False}


def read(schema: Any) -> dict[str, Any]:
    return read_schema(json.dumps(schema))


@pytest.mark.parametrize(
    "schema",
    [
        A,
        {**A, "type": "object", "required": ["a"], "minProperties": 1},
        {**A, "type": ["object", "null"]},
    ],
)
def test_closed(schema: dict[str, Any]) -> None:
    assert read(schema) == {**schema, **CLOSED}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "required": ["a"]},
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": {"type": "string"}},
        {**A, "patternProperties": {"^x": {"type": "string"}}},
        {**A, "required": ["a", "b"]},
        {"allOf": [A, B]},
        {**A, "allOf": [B]},
        {**A, "anyOf": [{"required": ["a"]}, B]},
        {"anyOf": [A], "oneOf": [B]},
        {"allOf": [{"anyOf": [A, B]}, {"anyOf": [A, B]}]},
        {"$defs": {"b": B}, "$ref": "#/$defs/b", **A},
        {"$defs": {"a": A, "b": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/b"}, B]},
    ],
)
def test_left_open(schema: dict[str, Any]) -> None:
    assert read(schema) == schema


def test_choices_and_references_are_closed_on_their_own() -> None:
    assert read({"anyOf": [A, B, {"type": "null"}]}) == {"anyOf": [{**A, **CLOSED}, {**B, **CLOSED}, {"type": "null"}]}
    assert read({"allOf": [A], "title": "One"}) == {"allOf": [{**A, **CLOSED}], "title": "One"}
    schema = {"$defs": {"a": A}, "type": "array", "items": {"$ref": "#/$defs/a", "description": "an A"}}
    assert read(schema)["$defs"] == {"a": {**A, **CLOSED}}
    nested = read({"properties": {"inner": A, "any": {"type": "object"}}})
    assert nested["properties"] == {"inner": {**A, **CLOSED}, "any": {"type": "object"}}


def test_what_is_closed_in_one_place_and_joined_in_another_stays_open() -> None:
    schema = {"$defs": {"a": A}, "properties": {"x": {"$ref": "#/$defs/a"}, "y": {"allOf": [{"$ref": "#/$defs/a"}, B]}}}
    assert read(schema)["$defs"] == {"a": A}


@pytest.mark.parametrize(("more", "last"), [({}, b"}"), ({"additionalProperties": True}, b",")])
def test_a_reply_ends_where_its_properties_do(models: Path, more: dict[str, Any], last: bytes) -> None:
    model = Model(str(models / "stories260K-q8_0.gguf"), vocab_only=True)
    sampler = Sampler(Recipe.of(Options(temperature=0.0), 64))
    constraint = Grammars(model).constraint(json.dumps({"type": "object", "required": ["a"], **A, **more}))
    pieces = model.pieces()
    for mark in (*(bytes([byte]) for byte in b'{"a": 1'), last):
        row = np.zeros(model.n_vocab, np.float32)
        row[pieces.index(b",")], row[pieces.index(b"}")] = 8, 7
        if mark != last:
            row[pieces.index(mark)] = 9
        assert pieces[constraint.pick(sampler, row, [])] == mark
    sampler.close()
    model.close()
