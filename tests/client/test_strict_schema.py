"""What the schema of a Python type allows is read as a value of the type; other types are refused by name."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import pathlib
import re
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest
from annotated_types import Gt, Le
from pydantic import BaseModel, ConfigDict, Field, create_model
from support.constraint_writer import ConstraintWriter, constraint_writer

from ollama_nb.client.shape import AnswerShape, shape_of
from ollama_nb.errors import BadRequest

SAMPLES = 120
LIMIT = 400  # tokens; longer texts, of types without a most length, are not read


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "bl.ue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 30


class Place(NamedTuple):
    at: datetime.datetime
    name: str


@dataclass
class Meeting:
    start: datetime.datetime
    length: datetime.timedelta
    keys: dict[int, uuid.UUID]


class Trip(TypedDict):
    day: datetime.date
    leave: datetime.time


class Cat(msgspec.Struct, tag=True):
    born: datetime.datetime


class Dog(msgspec.Struct, tag=True):
    walk: datetime.timedelta


class Row(msgspec.Struct, array_like=True, tag=True):
    at: datetime.datetime


Text = Annotated[str, msgspec.Meta(max_length=8)]
MSGSPEC: list[Any] = [
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    decimal.Decimal,
    bytes,
    bytearray,
    int,
    float,
    bool,
    None,
    Colour,
    Size,
    Literal[1, "a", None],
    set[int],
    frozenset[Size],
    tuple[int, datetime.date],
    tuple[bool, ...],
    list[datetime.timedelta],
    dict[int, bool],
    dict[Colour, int],
    dict[Literal["a", "b"], datetime.date],
    Place,
    Meeting,
    Trip,
    Cat | Dog,
    Cat | Dog | None | int,
    Cat | None,
    Row,
    datetime.datetime | None,
    int | datetime.date,
    list[Cat] | bool,
    Annotated[datetime.datetime, msgspec.Meta(tz=True)],
    Annotated[datetime.datetime, msgspec.Meta(tz=False)],
    Annotated[datetime.time, msgspec.Meta(tz=True)],
    Annotated[datetime.time, msgspec.Meta(tz=False)],
    Annotated[int, msgspec.Meta(ge=3, multiple_of=7)],
    Annotated[float, msgspec.Meta(gt=0, lt=0.5)],
    Annotated[str, msgspec.Meta(pattern=r"^\d{3}$")],
    Annotated[dict[int, bool], msgspec.Meta(max_length=2)],
    {"start": datetime.datetime, "raw": bytes},
    {"when": (datetime.date, "the day"), "kind": ["a", "b"]},
    Mapping[int, datetime.date],
    Sequence[datetime.time],
    collections.abc.Set[str],
]

PYDANTIC: list[Any] = [
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    decimal.Decimal,
    bytes,
    int,
    float,
    bool,
    Colour,
    Size,
    Literal[1, "a", None],
    set[int],
    frozenset[bool],
    tuple[int, datetime.date],
    tuple[bool, ...],
    dict[int, bool],
    dict[Literal["a", "b"], datetime.date],
    Meeting,
    datetime.datetime | None,
    fractions.Fraction,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
    collections.deque[int],
    collections.Counter[Literal["a"]],
    pydantic.UUID1,
    pydantic.UUID3,
    pydantic.UUID4,
    pydantic.UUID5,
    pydantic.UUID6,
    pydantic.UUID7,
    pydantic.UUID8,
    pydantic.AnyUrl,
    pydantic.HttpUrl,
    pydantic.AnyHttpUrl,
    pydantic.FileUrl,
    pydantic.FtpUrl,
    pydantic.WebsocketUrl,
    pydantic.PostgresDsn,
    pydantic.RedisDsn,
    pydantic.AmqpDsn,
    pydantic.MySQLDsn,
    pydantic.NatsDsn,
    pydantic.KafkaDsn,
    pydantic.MongoDsn,
    pydantic.ClickHouseDsn,
    pydantic.IPvAnyAddress,
    pydantic.IPvAnyInterface,
    pydantic.IPvAnyNetwork,
    pydantic.PositiveInt,
    pydantic.NegativeInt,
    pydantic.NonNegativeInt,
    pydantic.PositiveFloat,
    pydantic.NegativeFloat,
    pydantic.FiniteFloat,
    pydantic.StrictInt,
    pydantic.StrictBool,
    pydantic.StrictFloat,
    pydantic.AwareDatetime,
    pydantic.NaiveDatetime,
    pydantic.Base64Bytes,
    pydantic.Base64UrlBytes,
    pydantic.ByteSize,
    Annotated[decimal.Decimal, Field(max_digits=5, decimal_places=2)],
    Annotated[decimal.Decimal, Field(gt=0)],
    Annotated[decimal.Decimal, Field(multiple_of=decimal.Decimal("0.25"))],
    Annotated[int, Field(gt=3, multiple_of=7)],
    Annotated[float, Field(gt=0, lt=0.5)],
    Annotated[str, Field(pattern=r"^\d{3}$")],
    Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=3, max_length=5)],
    Annotated[bytes, Field(max_length=3)],
    Annotated[list[int], Field(min_length=2, max_length=3)],
    Annotated[int, Gt(0), Le(9)],
    pathlib.Path,
    Annotated[pydantic.SecretStr, Field(max_length=9)],
]


@pytest.fixture(scope="module")
def sampler(models: Path) -> Iterator[ConstraintWriter]:
    with constraint_writer(models / "stories260K-q8_0.gguf") as found:
        yield found


def read_samples(sampler: ConstraintWriter, shape: AnswerShape[Any]) -> None:
    """Values that the constraint allows, in each style of writing, are read."""
    read = 0
    format = json.dumps(shape.schema)
    for seed in range(SAMPLES):
        try:
            text = sampler.write(format, seed, limit=LIMIT, stop=(0.0, 3.0, 8.0)[seed % 3])
        except AssertionError:
            continue
        shape.parse(text)
        read += 1
    assert read >= SAMPLES / 3


@pytest.mark.parametrize("wanted", MSGSPEC, ids=str)
def test_what_a_type_allows_is_read(sampler: ConstraintWriter, wanted: Any) -> None:
    read_samples(sampler, shape_of(wanted))


@pytest.mark.parametrize("kind", PYDANTIC, ids=str)
def test_what_a_field_of_a_pydantic_model_allows_is_read(sampler: ConstraintWriter, kind: Any) -> None:
    read_samples(sampler, shape_of(create_model("Model", value=(kind, ...))))


class Forbids(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True, extra="forbid", str_min_length=2, str_max_length=6)
    name: str
    start: datetime.datetime


def test_a_configuration_of_a_model_counts(sampler: ConstraintWriter) -> None:
    read_samples(sampler, shape_of(Forbids))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pydantic.FilePath, "FilePath"),
        (pydantic.DirectoryPath, "DirectoryPath"),
        (pydantic.NewPath, "NewPath"),
        (pydantic.ImportString, "ImportString"),
        (pydantic.Json, "Json"),
        (pydantic.Base64Str, "Base64Str"),
        (set[Any], "set"),
        (re.Pattern, "Pattern"),
        (complex, "complex"),
        (pydantic.PastDate, "date"),
        (pydantic.FutureDatetime, "datetime"),
        (Annotated[datetime.time, Field(gt=datetime.time(9))], "time"),
        (Annotated[set[int], Field(min_length=2)], "set"),
        (dict[datetime.date, int], "dict"),
        (Callable[[], int], "Model"),
        (pydantic.PaymentCardNumber, "PaymentCardNumber"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_types_of_pydantic_without_a_strict_schema_are_refused_by_name(kind: Any, name: str) -> None:
    with pytest.raises(BadRequest, match=f"`[^`]*{name}[^`]*` cannot be the type of an answer|{name}"):
        shape_of(create_model("Model", value=(kind, ...)))


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (pathlib.Path, "Path"),
        (complex, "complex"),
        (set, "set"),
        ({"file": pathlib.Path}, "Path"),
        ({"found": Annotated[set[int], msgspec.Meta(min_length=2)]}, "set"),
        (dict[datetime.date, int], "dict"),
        (Annotated[bytes, msgspec.Meta(max_length=3)], "bytes"),
        (typing.Callable[[], int], "Callable"),
    ],
    ids=str,
)
def test_other_types_without_a_strict_schema_are_refused_by_name(wanted: Any, name: str) -> None:
    with pytest.raises(BadRequest, match=name):
        shape_of(wanted)
