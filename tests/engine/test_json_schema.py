"""JSON Schemas before native code: limits, recursion without end, and objects that get no further properties."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollama_nb.engine.json_schema import MAX_PARTS, depth, parse_schema
from ollama_nb.errors import BadRequest

# Limits


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
    ids=["not JSON", "a list", "a boolean", "too deep", "too long", "far too deep"],
)
def test_limits_are_checked_before_native_code(text: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        parse_schema(text)


def test_depth_counts_levels() -> None:
    assert [depth(value) for value in (1, {}, {"a": 1}, {"a": [1, {"b": 2}]})] == [0, 0, 1, 3]


# Recursion


ROOT = {"$ref": "#"}


def holder(value: Any, **more: Any) -> dict[str, Any]:
    """An object with a required property of that schema."""
    return {"type": "object", "properties": {"a": value}, "required": ["a"], **more}


INFINITE: list[dict[str, Any]] = [
    ROOT,
    holder(ROOT),
    holder(holder(ROOT)),
    holder({"anyOf": [ROOT, holder(ROOT)]}),
    holder({"allOf": [{"type": "object"}, ROOT]}),
    holder({"type": "array", "items": ROOT, "minItems": 1}),
    holder({"type": "array", "prefixItems": [{"type": "string"}, ROOT], "items": False, "minItems": 2}),
    {"type": ["object", "array"], "properties": {"a": ROOT}, "required": ["a"], "items": ROOT, "minItems": 1},
    {"type": "object", "required": ["other"], "additionalProperties": ROOT},
    {"type": "object", "properties": {"may": {"$ref": "#/$defs/x"}}, "$defs": {"x": holder({"$ref": "#/$defs/x"})}},
    {"$ref": "#/$defs/x", "$defs": {"x": holder({"$ref": "#/$defs/y"}), "y": holder({"$ref": "#/$defs/x"})}},
]  # fmt: skip

FINITE: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": ROOT}},
    {"properties": {"a": ROOT}, "required": ["a"]},
    holder({"anyOf": [ROOT, {"type": "null"}]}),
    holder({"oneOf": [{"type": "null"}, ROOT]}),
    holder({"type": "array", "items": ROOT}),
    holder({"type": "array", "prefixItems": [{"type": "string"}, ROOT], "minItems": 1}),
    holder(ROOT, type=["object", "null"]),
    holder({"enum": [{"a": 1}], "type": "object", "properties": {"b": ROOT}, "required": ["b"]}),
    holder({"type": "string"}, required=["a", "a"]),
    {"type": "object", "required": ["other"], "additionalProperties": False},
    {"$ref": "#/$defs/x", "$defs": {"x": holder({"$ref": "#/$defs/y"}), "y": holder({"type": "integer"})}},
    {"type": "array", "items": {"anyOf": [{"type": "integer"}, ROOT]}, "minItems": 3},
]


@pytest.mark.parametrize("schema", INFINITE, ids=json.dumps)
def test_infinite_schemas_are_refused_with_their_reference(schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=r'invalid format: \$ref: "#.*" is required within itself without end'):
        parse_schema(json.dumps(schema))


@pytest.mark.parametrize("schema", FINITE, ids=json.dumps)
def test_finite_schemas_are_accepted(schema: dict[str, Any]) -> None:
    assert parse_schema(json.dumps(schema)).keys() - {"additionalProperties"} == schema.keys() - {
        "additionalProperties"
    }


@pytest.mark.parametrize("last", [{"type": "integer"}, holder({"$ref": "#/$defs/0"})], ids=["finite", "infinite"])
@pytest.mark.parametrize("backwards", [False, True])
def test_long_chains_of_references_are_followed(last: dict[str, Any], backwards: bool) -> None:
    count = MAX_PARTS // 4
    chain = [(str(n), holder({"$ref": f"#/$defs/{n + 1}"})) for n in range(count)]
    defs = dict(reversed(chain) if backwards else chain)
    text = json.dumps({"$defs": defs | {str(count): last}, "$ref": "#/$defs/0"})
    if "$ref" in json.dumps(last):
        with pytest.raises(BadRequest, match="without end"):
            parse_schema(text)
    else:
        assert parse_schema(text)


# Closed objects


A = {"properties": {"a": {"type": "boolean"}}}
B = {"properties": {"b": {"type": "boolean"}}}
CLOSED = {"additionalProperties": False}


def parsed(schema: Any) -> dict[str, Any]:
    return parse_schema(json.dumps(schema))


@pytest.mark.parametrize(
    "schema",
    [
        A,
        {**A, "type": "object", "required": ["a"], "minProperties": 1},
        {**A, "type": ["object", "null"]},
    ],
)
def test_objects_with_listed_properties_are_closed(schema: dict[str, Any]) -> None:
    assert parsed(schema) == {**schema, **CLOSED}


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
def test_other_objects_stay_open(schema: dict[str, Any]) -> None:
    assert parsed(schema) == schema


def test_choices_and_references_are_closed_separately() -> None:
    assert parsed({"anyOf": [A, B, {"type": "null"}]}) == {
        "anyOf": [{**A, **CLOSED}, {**B, **CLOSED}, {"type": "null"}]
    }
    assert parsed({"allOf": [A], "title": "One"}) == {"allOf": [{**A, **CLOSED}], "title": "One"}
    schema = {"$defs": {"a": A}, "type": "array", "items": {"$ref": "#/$defs/a", "description": "an A"}}
    assert parsed(schema)["$defs"] == {"a": {**A, **CLOSED}}
    nested = parsed({"properties": {"inner": A, "any": {"type": "object"}}})
    assert nested["properties"] == {"inner": {**A, **CLOSED}, "any": {"type": "object"}}


def test_an_object_that_is_combined_in_one_place_stays_open() -> None:
    schema = {"$defs": {"a": A}, "properties": {"x": {"$ref": "#/$defs/a"}, "y": {"allOf": [{"$ref": "#/$defs/a"}, B]}}}
    assert parsed(schema)["$defs"] == {"a": A}
