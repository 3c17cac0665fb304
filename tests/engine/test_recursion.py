"""Schemas that require themselves without end are refused by name; recursion that can end is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollama_nb.engine.schema import MAX_PARTS, read_schema
from ollama_nb.errors import BadRequest

ROOT = {"$ref": "#"}


def holder(value: Any, **more: Any) -> dict[str, Any]:
    """An object that must have a member of that schema."""
    return {"type": "object", "properties": {"a": value}, "required": ["a"], **more}


ENDLESS: list[dict[str, Any]] = [
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

ENDING: list[dict[str, Any]] = [
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


@pytest.mark.parametrize("schema", ENDLESS, ids=json.dumps)
def test_what_never_ends_is_refused_by_name(schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=r'invalid format: \$ref: "#.*" is required within itself without end'):
        read_schema(json.dumps(schema))


@pytest.mark.parametrize("schema", ENDING, ids=json.dumps)
def test_what_can_end_is_kept(schema: dict[str, Any]) -> None:
    assert read_schema(json.dumps(schema)).keys() - {"additionalProperties"} == schema.keys() - {"additionalProperties"}


@pytest.mark.parametrize("last", [{"type": "integer"}, holder({"$ref": "#/$defs/0"})], ids=["ends", "never ends"])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_long_chain_is_followed_to_its_end(last: dict[str, Any], backwards: bool) -> None:
    count = MAX_PARTS // 4
    chain = [(str(n), holder({"$ref": f"#/$defs/{n + 1}"})) for n in range(count)]
    defs = dict(reversed(chain) if backwards else chain)
    text = json.dumps({"$defs": defs | {str(count): last}, "$ref": "#/$defs/0"})
    if "$ref" in json.dumps(last):
        with pytest.raises(BadRequest, match="without end"):
            read_schema(text)
    else:
        assert read_schema(text)
