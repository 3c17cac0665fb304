"""Thirty Pydantic models as people write them; their schemas bind replies, which the models then must read."""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter, constr

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


MODELS: list[type[BaseModel]] = [
    Point, Flags, Person, Choice, Answer, Version, Maybe, MaybeMissing, Either, Points, Pair, Scores, Codes, Event,
    Birthday, Alarm, Zip, Ratio, Step, Alias, Deprecated, Node, Branch, Pet, Order, Digits, Nothing, Open, Code, Cat,
]  # fmt: skip


REFUSED: list[tuple[Any, str]] = [
    (set[int], '"uniqueItems"'),
    (bytes, "format: binary"),
    (dict[Colour, int], '"propertyNames"'),
]


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON Schema that Pydantic gives for a type."""
    return TypeAdapter(kind).json_schema()
