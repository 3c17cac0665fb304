"""Types as the shape of an answer: the schema that constrains it and the value parsed from it."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import jsonschema
import msgspec
import pytest
from pydantic import BaseModel, Field

from ollama_nb.client.shape import shape_of
from ollama_nb.errors import BadRequest, OllamaError


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "蓝"


@dataclass
class Wheel:
    size: int


@dataclass
class Bike:
    """``title`` is a property here, not a word of the schema."""

    title: str
    colour: Colour
    wheels: list[Wheel]
    sold: datetime.date | None = None


class Point(TypedDict):
    x: float
    y: float


class Author(TypedDict):
    名字: str


class Chinese(TypedDict):
    标题: str
    作者: Author


class Pair(NamedTuple):
    left: int
    right: str


class Tree(msgspec.Struct):
    name: str
    branches: list[Tree]


class Person(BaseModel):
    name: str = Field(description="given name")
    age: int = 0


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [
        (int, "7", 7),
        (bool, "true", True),
        (list[str], '["a"]', ["a"]),
        (Literal["yes", "no"], '"no"', "no"),
        (Colour, '"蓝"', Colour.BLUE),
        (Point, '{"x": 1.5, "y": 2}', {"x": 1.5, "y": 2.0}),
        (Pair, '[1, "b"]', Pair(1, "b")),
        (Person, '{"name": "Ann", "age": 3}', Person(name="Ann", age=3)),
        (
            Bike,
            '{"title": "t", "colour": "red", "wheels": [{"size": 28}], "sold": "2024-02-29"}',
            Bike("t", Colour.RED, [Wheel(28)], datetime.date(2024, 2, 29)),
        ),
        (Tree, '{"name": "a", "branches": [{"name": "b", "branches": []}]}', Tree("a", [Tree("b", [])])),
        ({"city": str, "kind": ["big", "small"]}, '{"city": "X", "kind": "big"}', {"city": "X", "kind": "big"}),
        ({"first name": "how people call her"}, '{"first name": "Ann"}', {"first name": "Ann"}),
        ({"年龄": (int, "in years")}, '{"年龄": 3}', {"年龄": 3}),
        (Chinese, '{"标题": "诗", "作者": {"名字": "李白"}}', {"标题": "诗", "作者": {"名字": "李白"}}),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Annotated[int, msgspec.Meta(ge=0, le=9)], "9", 9),
    ],
)
def test_texts_that_the_schema_allows_are_parsed(wanted: Any, text: str, value: Any) -> None:
    shape = shape_of(wanted)
    jsonschema.Draft202012Validator.check_schema(shape.schema)
    jsonschema.validate(msgspec.json.decode(text), shape.schema)
    assert shape.parse(text) == value


@pytest.mark.parametrize("wanted", [Bike, Person, Point, {"a": int, "b": str}])
def test_every_property_is_required_and_none_may_be_added(wanted: Any) -> None:
    schema = shape_of(wanted).schema
    assert schema["required"] == [*schema["properties"]]
    assert schema["additionalProperties"] is False


def test_properties_keep_their_order() -> None:
    assert [*shape_of({"name": str, "age": int, "city": str}).schema["properties"]] == ["name", "age", "city"]
    assert [*shape_of(Chinese).schema["properties"]] == ["标题", "作者"]


def test_type_names_are_dropped_and_properties_kept() -> None:
    schema = shape_of(Bike).schema
    assert "title" not in schema
    assert schema["properties"]["title"] == {"type": "string"}
    assert "$ref" not in schema


def test_descriptions_and_choices_reach_the_schema() -> None:
    schema = shape_of({"city": "where it is", "kind": ["a", "b"], "n": (int, "how many")}).schema
    assert schema["properties"] == {
        "city": {"type": "string", "description": "where it is"},
        "kind": {"enum": ["a", "b"]},
        "n": {"type": "integer", "description": "how many"},
    }


@pytest.mark.parametrize("wanted", [Person, Bike, int, {"a": int}])
def test_an_answer_of_another_shape_is_an_error(wanted: Any) -> None:
    with pytest.raises(OllamaError, match="the answer does not have the wanted shape"):
        shape_of(wanted).parse('{"name"')


@pytest.mark.parametrize(
    ("wanted", "words"),
    [(3, "3 cannot be the shape"), ({}, "no fields"), ({"a": (int, str)}, "a list names choices"), (object(), "shape")],
)
def test_values_that_are_not_types_are_refused(wanted: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        shape_of(wanted)
