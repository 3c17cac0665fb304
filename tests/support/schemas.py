"""JSON Schemas and Pydantic types that replies are constrained to.

``ACCEPTED`` and ``REFUSED`` are plain schemas: a table of parts in a table of positions, and schemas as people write
them. ``TYPES`` and ``REFUSED_TYPES`` are Pydantic types whose generated schemas constrain a reply.
"""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter, constr

Schema = dict[str, Any]

PARTS: dict[str, Schema] = {
    "short text": {"type": "string", "maxLength": 12},
    "long enough text": {"type": "string", "minLength": 3, "maxLength": 9},
    "text of one length": {"type": "string", "minLength": 4, "maxLength": 4},
    "empty text": {"type": "string", "maxLength": 0},
    "letters": {"type": "string", "pattern": "^[a-z]{2,8}$"},
    "capitals or digits": {"type": "string", "pattern": "^(?:[A-Z]{3}|[0-9]{4})$"},
    "pattern inside": {"type": "string", "pattern": "[0-9]-[a-f]", "maxLength": 10},
    "pattern at an end": {"type": "string", "pattern": "ing$", "maxLength": 10},
    "pattern and lengths": {"type": "string", "pattern": "^[a-z ]+$", "minLength": 5, "maxLength": 8},
    "quotes and backslashes": {"type": "string", "pattern": r'^["\\/]{1,4}$'},
    "classes": {"type": "string", "pattern": r"^\d{1,3}\s\w{1,4}$"},
    "Chinese": {"type": "string", "pattern": "^[一-龥]{1,3}$"},
    "date": {"type": "string", "format": "date"},
    "date-time": {"type": "string", "format": "date-time", "maxLength": 24},
    "time": {"type": "string", "format": "time", "maxLength": 14},
    "uuid": {"type": "string", "format": "uuid"},
    "date of a century": {"type": "string", "format": "date", "pattern": "^20"},
    "IPv4": {"type": "string", "format": "ipv4"},
    "count": {"type": "integer", "minimum": 0, "maximum": 120},
    "negative": {"type": "integer", "minimum": -50, "maximum": -7},
    "open bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    "bounds between integers": {"type": "integer", "minimum": 0.5, "maximum": 3.5},
    "multiple": {"type": "integer", "minimum": 0, "maximum": 999, "multipleOf": 7},
    "fraction": {"type": "number", "minimum": 0, "maximum": 1},
    "temperature": {"type": "number", "minimum": -40.5, "maximum": 59.25},
    "open fraction": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    "price": {"type": "number", "minimum": 0, "maximum": 99, "multipleOf": 0.25},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "one of two types": {"type": ["boolean", "null"]},
    "text or count": {"type": ["string", "integer"], "maxLength": 5, "minimum": 1, "maximum": 9},
    "words": {"enum": ["red", "green", "dark blue"]},
    "values of all types": {"enum": ["a", 1, 2.5, True, None, [1, "x"], {"k": []}]},
    "hard words": {"enum": ['"', "\\", "\n", "\x7f", "é", "红", "😀", ""]},
    "enum within bounds": {"enum": [1, 5, 9, "x"], "type": "integer", "minimum": 4},
    "constant text": {"const": "yes"},
    "constant object": {"const": {"a": [1, None, "x"], "b": {}}},
    "constant fraction": {"const": -0.125},
    "list": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    "pair": {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
}
"""Each allows only short replies, so that a small model finishes them."""


def _place(place: int, part: Schema) -> Schema:
    """The part alone, or nested in another schema."""
    closed = {"type": "object", "additionalProperties": False}
    match place:
        case 0:
            return part
        case 1:
            return {**closed, "properties": {"value": part}, "required": ["value"]}
        case 2:
            return {**closed, "properties": {"first": {"const": 0}, "value": part}, "required": ["first"]}
        case 3:
            return {"type": "array", "items": part, "minItems": 1, "maxItems": 3}
        case 4:
            return {"anyOf": [{"type": "array", "prefixItems": [part], "minItems": 1, "maxItems": 1}, {"const": "no"}]}
        case 5:
            return {"$ref": "#/$defs/part~1one", "$defs": {"part/one": part}}
        case 6:
            left = {"type": "object", "properties": {"left": part}, "required": ["left"]}
            right = {"type": "object", "properties": {"right": {"type": "boolean"}}, "required": ["right"]}
            return {"allOf": [left, right], "maxProperties": 2}
        case _:
            return {"type": "object", "required": ["key"], "additionalProperties": part, "maxProperties": 2}


PLACES = 8
GENERATED: dict[str, Schema] = {
    f"{name}, place {place}": _place(place, part)
    for number, (name, part) in enumerate(PARTS.items())
    for place in ((number + step * 2) % PLACES for step in range(4))
}

_NODE: Schema = {
    "type": "object",
    "properties": {"value": {"enum": [1, 2]}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
    "required": ["value", "next"],
    "additionalProperties": False,
}
_SHAPES: list[Schema] = [
    {
        "type": "object",
        "properties": {"kind": {"const": "circle"}, "radius": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["kind", "radius"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"kind": {"const": "box"}, "open": {"type": "boolean"}},
        "required": ["kind", "open"],
        "additionalProperties": False,
    },
]
_DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
_TREE: Schema = {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}

WRITTEN: dict[str, Schema] = {
    "linked list": {"$ref": "#/$defs/node", "$defs": {"node": _NODE}},
    "tree of lists": _TREE,
    "tree of objects": {
        "type": "object",
        "properties": {
            "name": {"enum": ["a", "b"]},
            "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    "even and odd": {
        "$ref": "#/$defs/even",
        "$defs": {
            "even": {
                "anyOf": [{"const": 0}, {"type": "array", "prefixItems": [{"$ref": "#/$defs/odd"}], "items": False}]
            },
            "odd": {"type": "array", "prefixItems": [{"$ref": "#/$defs/even"}], "items": False, "minItems": 1},
        },
    },
    "expression": {
        "anyOf": [
            _DIGIT,
            {
                "type": "object",
                "properties": {"op": {"enum": ["+", "*"]}, "left": _DIGIT, "right": {"$ref": "#"}},
                "required": ["op", "left", "right"],
                "additionalProperties": False,
            },
        ]
    },
    "reference to a property": {
        "type": "object",
        "properties": {"a": _DIGIT, "b": {"$ref": "#/properties/a"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "reference with siblings": {"$ref": "#/$defs/n", "minimum": 3, "$defs": {"n": {"type": "integer", "maximum": 4}}},
    "reference with escapes": {"$ref": "#/$defs/a%20b~0c", "$defs": {"a b~c": _DIGIT}},
    "tagged union": {"oneOf": _SHAPES},
    "tagged union in a list": {"type": "array", "items": {"oneOf": _SHAPES}, "minItems": 1, "maxItems": 2},
    "union of types": {"oneOf": [{"type": "null"}, {"type": "boolean"}, _DIGIT, {"type": "array", "maxItems": 0}]},
    "union of constants": {"oneOf": [{"const": "a"}, {"const": "b"}, {"const": 3}]},
    "union of ranges": {"anyOf": [{"minimum": 1, "maximum": 3}, {"minimum": 7, "maximum": 9}], "type": "integer"},
    "union of lengths": {"type": "string", "anyOf": [{"maxLength": 2}, {"minLength": 5, "maxLength": 6}]},
    "union within a union": {"anyOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"oneOf": [{"const": 3}, _TREE]}]},
    "union of objects": {"anyOf": _SHAPES},
    "all of two ranges": {"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 12}, {"multipleOf": 2}]},
    "all of two patterns": {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "z$"}], "maxLength": 6},
    "all of three objects": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 7}, "b": {"type": "boolean"}}, "required": ["b"]},
            {"$ref": "#/$defs/c"},
        ],
        "maxProperties": 3,
        "$defs": {"c": {"properties": {"c": {"enum": [[], None]}}, "required": ["c"]}},
    },
    "all of, closed": {
        "allOf": [{"properties": {"a": _DIGIT, "b": _DIGIT}, "additionalProperties": False}, {"required": ["b"]}],
        "type": "object",
    },
    "all of a union and an object": {
        "allOf": [{"anyOf": _SHAPES}, {"properties": {"kind": {"enum": ["box", "line"]}}}],
    },
    "optional properties": {
        "type": "object",
        "properties": dict.fromkeys(("a", "b", "c", "d"), _DIGIT),
        "additionalProperties": False,
    },
    "odd names": {
        "type": "object",
        "properties": dict.fromkeys(("", '"', "a\\b", "a/b", "\n", "é 红", "$ref", "type"), _DIGIT),
        "required": ["", '"', "a\\b", "a/b", "\n", "é 红", "$ref", "type"],
        "additionalProperties": False,
    },
    "no properties": {"type": "object", "additionalProperties": False},
    "impossible property": {"type": "object", "properties": {"a": False, "b": _DIGIT}, "additionalProperties": False},
    "typed others": {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "additionalProperties": _DIGIT,
        "required": ["a"],
        "maxProperties": 2,
    },
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "at least one property": {"type": "object", "additionalProperties": _DIGIT, "minProperties": 1, "maxProperties": 2},
    "two of two": {
        "type": "object",
        "properties": {"a": _DIGIT, "b": _DIGIT},
        "required": ["a", "b"],
        "additionalProperties": _DIGIT,
        "minProperties": 2,
        "maxProperties": 3,
    },
    "table": {
        "type": "array",
        "items": {"type": "array", "items": _DIGIT, "minItems": 2, "maxItems": 2},
        "minItems": 2,
        "maxItems": 3,
    },
    "head and rest": {"type": "array", "prefixItems": [{"const": "h"}], "items": _DIGIT, "minItems": 2, "maxItems": 4},
    "head and anything": {"type": "array", "prefixItems": [_DIGIT, {"type": "null"}], "minItems": 2, "maxItems": 2},
    "head may be missing": {"type": "array", "prefixItems": [_DIGIT, _DIGIT], "items": False},
    "draft 7 pair": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [_DIGIT, {"type": "boolean"}],
        "additionalItems": False,
    },
    "draft 7 definitions": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"d": _DIGIT},
        "type": "object",
        "properties": {"d": {"$ref": "#/definitions/d"}},
        "required": ["d"],
        "additionalProperties": False,
    },
    "notes are no rules": {
        "type": "boolean",
        "title": "T",
        "description": "D",
        "default": 3,
        "examples": [1],
        "x-note": 2,
    },
    "event": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "at": {"type": "string", "format": "date-time", "maxLength": 20},
            "level": {"enum": ["info", "error"]},
        },
        "required": ["id", "at", "level"],
        "additionalProperties": False,
    },
    "address": {
        "type": "object",
        "properties": {
            "street": {"type": "string", "maxLength": 10},
            "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            "country": {"type": "string", "pattern": "^[A-Z]{2}$"},
        },
        "required": ["street", "zip"],
        "additionalProperties": False,
    },
    "properties without a type": {
        "properties": {"a": _DIGIT},
        "required": ["a"],
        "maxProperties": 1,
        "maxLength": 9,
        "maxItems": 1,
    },
    "required without a property": {
        "type": "object",
        "required": ["x", "y"],
        "additionalProperties": _DIGIT,
        "maxProperties": 2,
    },
}

ACCEPTED: dict[str, Schema] = GENERATED | WRITTEN

REFUSED: dict[str, tuple[Schema, str]] = {
    "not": ({"not": {"type": "string"}}, '"not"'),
    "if": ({"if": {"const": 1}, "then": {"const": 1}}, '"if"'),
    "contains": ({"type": "array", "contains": {"const": 1}}, '"contains"'),
    "unique items": ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
    "names of properties": ({"type": "object", "propertyNames": {"maxLength": 3}}, '"propertyNames"'),
    "dependent required": ({"type": "object", "dependentRequired": {"a": ["b"]}}, '"dependentRequired"'),
    "dependent schemas": ({"type": "object", "dependentSchemas": {"a": {}}}, '"dependentSchemas"'),
    "unevaluated properties": ({"type": "object", "unevaluatedProperties": False}, '"unevaluatedProperties"'),
    "unevaluated items": ({"type": "array", "unevaluatedItems": False}, '"unevaluatedItems"'),
    "dynamic reference": ({"$dynamicRef": "#a"}, '"$dynamicRef"'),
    "deep inside": ({"type": "array", "items": {"properties": {"a": {"not": {}}}}}, '"not"'),
    "overlapping oneOf": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf: "),
    "compiler's switch": (
        {"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "number"}, {"type": "integer"}]},
        "oneOf: ",
    ),
    "look-ahead": ({"type": "string", "pattern": "^(?=a)b"}, "pattern: "),
    "back reference": ({"type": "string", "pattern": r"^(a)\1$"}, "pattern: "),
    "word boundary": ({"type": "string", "pattern": r"\bword\b"}, "pattern: "),
    "unclosed group": ({"type": "string", "pattern": "(a"}, "pattern: "),
    "unknown type": ({"type": "text"}, "type: text"),
    "other file": ({"$ref": "other.json#/a"}, "$ref: "),
    "no such place": ({"$ref": "#/$defs/a"}, "/$defs/a"),
    "negative length": ({"type": "array", "minItems": -1}, "minItems"),
    "minimum is text": ({"type": "integer", "minimum": "1"}, "minimum"),
    "bounds too far": ({"type": "number", "minimum": -1e300}, "minimum"),
    "multiple of nothing": ({"type": "integer", "multipleOf": 0}, "multipleOf: "),
    "large multiple": ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf: "),
    "names may be doubled": ({"type": "object", "minProperties": 2}, "minProperties: "),
    "some of the optional": ({"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}, "maxProperties"),
    "crossed bounds": ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems"),
    "no choice": ({"anyOf": []}, "anyOf"),
    "crossing name patterns": ({"patternProperties": {"^a": {}, "b$": {}}}, "patternProp"),
}


Digit = Annotated[int, Field(ge=0, le=9)]
Word = Annotated[str, Field(min_length=1, max_length=8)]


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Point(Closed):
    x: Digit
    y: Digit


class Flags(Closed):
    on: bool
    ready: bool = False


class Person(Closed):
    name: Word
    age: Annotated[int, Field(ge=0, le=120)]


class Choice(Closed):
    colour: Colour
    level: Level


class Answer(Closed):
    verdict: Literal["yes", "no", "unsure"]


class Version(Closed):
    version: Literal[2]


class Maybe(Closed):
    value: Digit | None


class MaybeMissing(Closed):
    value: Digit | None = None


class Either(Closed):
    value: Digit | bool | Word


class Points(Closed):
    points: Annotated[list[Point], Field(min_length=1, max_length=2)]


class Pair(Closed):
    pair: tuple[Digit, bool]


class Scores(Closed):
    scores: Annotated[dict[str, Digit], Field(max_length=2)]


class Codes(Closed):
    codes: Annotated[list[Annotated[str, Field(pattern="^[A-Z]{2}$")]], Field(min_length=1, max_length=3)]


class Event(Closed):
    id: uuid.UUID
    at: datetime.datetime


class Birthday(Closed):
    day: datetime.date


class Alarm(Closed):
    time: datetime.time


class Zip(Closed):
    zip: Annotated[str, Field(pattern=r"^\d{5}$")]


class Ratio(Closed):
    ratio: Annotated[float, Field(gt=0, lt=1)]


class Step(Closed):
    step: Annotated[int, Field(multiple_of=5, ge=0, le=100)]


class Alias(Closed):
    first: Digit = Field(alias="first-value", description="The first", examples=[1])


class Deprecated(Closed):
    old: Digit = Field(deprecated=True, title="Old")


class Node(Closed):
    value: Digit
    next: Node | None = None


class Branch(Closed):
    children: Annotated[list[Branch], Field(max_length=2)]


class Cat(Closed):
    kind: Literal["cat"]
    lives: Digit


class Dog(Closed):
    kind: Literal["dog"]
    loud: bool


class Pet(Closed):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Order(Closed):
    person: Person
    items: Annotated[list[Choice], Field(max_length=2)]


class Digits(RootModel[Annotated[list[Digit], Field(min_length=2, max_length=4)]]):
    pass


class Nothing(Closed):
    pass


class Open(BaseModel):
    number: Digit


class Code(Closed):
    code: constr(min_length=3, max_length=3, pattern="^[a-z]+$")  # type: ignore[valid-type]


TYPES: list[type[BaseModel]] = [
    Point, Flags, Person, Choice, Answer, Version, Maybe, MaybeMissing, Either, Points, Pair, Scores, Codes, Event,
    Birthday, Alarm, Zip, Ratio, Step, Alias, Deprecated, Node, Branch, Pet, Order, Digits, Nothing, Open, Code, Cat,
]  # fmt: skip


REFUSED_TYPES: list[tuple[Any, str]] = [
    (set[int], '"uniqueItems"'),
    (dict[Colour, int], '"propertyNames"'),
]


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON Schema that Pydantic gives for a type."""
    return TypeAdapter(kind).json_schema()
