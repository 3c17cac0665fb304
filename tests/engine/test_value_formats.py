"""Every constrained value ends, and common readers accept it."""

from __future__ import annotations

import calendar
import datetime
import fractions
import ipaddress
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import (
    UUID1,
    UUID3,
    UUID4,
    UUID5,
    UUID6,
    UUID7,
    UUID8,
    AnyUrl,
    Base64Bytes,
    Base64UrlBytes,
    IPvAnyAddress,
    IPvAnyInterface,
    IPvAnyNetwork,
    TypeAdapter,
)
from support.constraint_writer import ConstraintWriter, constraint_writer

from ollama_nb.engine.json_schema import unknown_formats
from ollama_nb.engine.value_formats import FORMATS, RESERVED_DOMAINS, _letters_except
from ollama_nb.errors import BadRequest

SAMPLES = 150


@pytest.fixture(scope="module")
def writer(models: Path) -> Iterator[ConstraintWriter]:
    with constraint_writer(models / "stories260K-q8_0.gguf") as found:
        yield found


def adapter(kind: Any) -> Callable[[str], Any]:
    return TypeAdapter(kind).validate_python


def email(text: str) -> None:
    local, _, domain = text.partition("@")
    assert len(local) <= 64 and len(text) <= 254 and "." in domain and domain.rpartition(".")[2] not in RESERVED_DOMAINS
    assert ".." not in text and all(len(label) <= 63 for label in domain.split("."))


def hostname(text: str) -> None:
    assert len(text) <= 253 and all(0 < len(label) <= 63 for label in text.split("."))


READERS: dict[str, list[Callable[[str], Any]]] = {
    "date": [datetime.date.fromisoformat, adapter(datetime.date)],
    "time": [datetime.time.fromisoformat, adapter(datetime.time)],
    "date-time": [datetime.datetime.fromisoformat, adapter(datetime.datetime)],
    "partial-time": [datetime.time.fromisoformat, adapter(datetime.time)],
    "partial-date-time": [datetime.datetime.fromisoformat, adapter(datetime.datetime)],
    "duration": [adapter(datetime.timedelta)],
    "email": [email],
    "hostname": [hostname, lambda text: AnyUrl(f"http://{text}/")],
    "ipv4": [ipaddress.IPv4Address, adapter(IPvAnyAddress)],
    "ipv6": [ipaddress.IPv6Address],
    "ipvanyaddress": [adapter(IPvAnyAddress)],
    "ipv4interface": [ipaddress.IPv4Interface],
    "ipv6interface": [ipaddress.IPv6Interface],
    "ipvanyinterface": [adapter(IPvAnyInterface)],
    "ipv4network": [ipaddress.IPv4Network],
    "ipv6network": [ipaddress.IPv6Network],
    "ipvanynetwork": [adapter(IPvAnyNetwork)],
    "uuid": [uuid.UUID],
    "uuid1": [adapter(UUID1)],
    "uuid2": [uuid.UUID],
    "uuid3": [adapter(UUID3)],
    "uuid4": [adapter(UUID4)],
    "uuid5": [adapter(UUID5)],
    "uuid6": [adapter(UUID6)],
    "uuid7": [adapter(UUID7)],
    "uuid8": [adapter(UUID8)],
    "uri": [AnyUrl],
    "base64": [adapter(Base64Bytes)],
    "base64url": [adapter(Base64UrlBytes)],
    "decimal": [Decimal],
    "fraction": [fractions.Fraction],
    "color": [lambda text: int(text[1:], 16)],
}


def test_every_format_has_a_reader() -> None:
    assert READERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_readers_accept_what_a_format_allows(writer: ConstraintWriter, name: str) -> None:
    schema = json.dumps({"type": "string", "format": name})
    for seed in range(SAMPLES):
        text = json.loads(writer.write(schema, seed, limit=1500, stop=0 if seed % 2 else 3.0))
        for read in READERS[name]:
            read(text)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stubborn", [b"0123456789", b"abcdefghijklmnopqrstuvwxyz", b".-:/+=0a"])
def test_values_of_a_format_end(writer: ConstraintWriter, name: str, stubborn: bytes) -> None:
    text = json.loads(writer.write(json.dumps({"format": name, "type": "string"}), 1, limit=2200, stubborn=stubborn))
    assert len(text) <= 2083
    for read in READERS[name]:
        read(text)


def test_only_calendar_dates_are_allowed() -> None:
    pattern = re.compile(FORMATS["date"])
    for year in (1, 4, 99, 100, 400, 1000, 1600, 1700, 1900, 1999, 2000, 2023, 2024, 2100, 2400, 4000, 9996, 9999):
        for month in range(14):
            days = calendar.monthrange(year, month)[1] if 1 <= month <= 12 else 0
            for day in range(33):
                assert bool(pattern.fullmatch(f"{year:04}-{month:02}-{day:02}")) == (1 <= day <= days)
    leap = [year for year in range(10_000) if pattern.fullmatch(f"{year:04}-02-29")]
    assert leap == [year for year in range(1, 10_000) if calendar.isleap(year)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("date", "0000-01-01"),
        ("time", "23:59:60Z"),
        ("time", "24:00:00Z"),
        ("time", "12:00:00"),
        ("time", "12:00:00+24:00"),
        ("date-time", "2026-01-01T24:00:00Z"),
        ("date-time", "2026-01-01T00:00:00.Z"),
        ("date-time", "2023-02-29T00:00:00Z"),
        ("uri", "http://1.2.3.999/"),
        ("uri", "http://a:70000/"),
        ("email", "a@b.test"),
        ("email", "a..b@c.com"),
        ("ipv4", "256.1.1.1"),
        ("ipv4", "01.1.1.1"),
        ("base64", "abc"),
    ],
)
def test_values_that_readers_refuse_are_not_allowed(name: str, text: str) -> None:
    assert not re.fullmatch(FORMATS[name], text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("date", "2024-02-29"),
        ("date-time", "2026-05-03T09:30:00.123456+05:45"),
        ("duration", "P1Y2M3DT4H5M6S"),
        ("duration", "P2W"),
        ("email", "first.last+tag@mail.example-company.technology"),
        ("hostname", "ec2-203-0-113-25.us-west-2.compute.example.com"),
        ("ipv6", "2001:db8::1"),
        ("ipv6", "::"),
        ("uri", "https://example.org:8443/a/b/c.html?x=1&y=%20#top"),
        ("uri", "mailto:a@b.com"),
        ("uri", "urn:isbn:0451450523"),
        ("uri", "file:///etc/hosts"),
        ("base64", "YWI="),
    ],
)
def test_usual_values_are_allowed(name: str, text: str) -> None:
    assert re.fullmatch(FORMATS[name], text)


def test_words_are_excluded_exactly() -> None:
    words = ("test", "tests", "local", "localhost")
    pattern = re.compile(_letters_except(words, 10))
    for word in ("tes", "te", "testx", "testsx", "locals", "localh", "localhos", "localhosts", "Tester", "zz"):
        assert pattern.fullmatch(word), word
    for word in (*words, "TEST", "LocalHost", "x", "x" * 11, "a1"):
        assert not pattern.fullmatch(word), word


NUMBERS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    ({"type": "number"}, math.isfinite),
    ({"type": "integer"}, lambda value: abs(value) < 2**63),
    ({"type": "integer", "minimum": 5}, lambda value: 5 <= value < 2**63),
    ({"type": "integer", "multipleOf": 7}, lambda value: value % 7 == 0),
    ({"type": ["integer", "null"], "exclusiveMaximum": 0}, lambda value: value is None or value < 0),
    ({"type": "number", "minimum": 0, "maximum": 1}, lambda value: 0 <= value <= 1),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, lambda value: 0 < value < 0.5),
    ({"type": "number", "exclusiveMinimum": -0.5, "exclusiveMaximum": 0}, lambda value: -0.5 < value < 0),
    ({"type": "number", "exclusiveMinimum": 0}, lambda value: 0 < value < math.inf),
    ({"type": "number", "minimum": 0.25, "multipleOf": 0.25}, lambda value: value >= 0.25 and value % 0.25 == 0),
    ({"type": "number", "multipleOf": 0.01}, lambda value: round(value, 2) == value),
    ({"minimum": 3, "type": ["number", "boolean"]}, lambda value: isinstance(value, bool) or value >= 3),
]


@pytest.mark.parametrize("stubborn", [b"", b"0123456789", b"0.", b"9e", b"-1.", b"0e+"])
@pytest.mark.parametrize(("schema", "valid"), NUMBERS, ids=[str(schema) for schema, _ in NUMBERS])
def test_numbers_end_within_their_bounds(
    writer: ConstraintWriter, schema: dict[str, Any], valid: Callable[[Any], bool], stubborn: bytes
) -> None:
    for seed in range(20):
        value = json.loads(writer.write(json.dumps(schema), seed, limit=50, stubborn=stubborn))
        assert valid(value), value


@pytest.mark.parametrize(("format", "prefix"), [("json", '{"a": '), ("{}", ""), ('{"type": "array"}', "")])
def test_nesting_ends(writer: ConstraintWriter, format: str, prefix: str) -> None:
    levels = 64 - len(prefix[:1])
    deepest = prefix + "[" * levels
    text = writer.write(format, 1, limit=2000, stop=40, prefix=f"{deepest}[".encode())
    assert not text.startswith(deepest + "[") and text.startswith(deepest)
    json.loads(text)


def test_nesting_of_a_list_of_lists_ends(writer: ConstraintWriter) -> None:
    schema = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}
    text = writer.write(json.dumps(schema), 1, limit=2000, stubborn=b"[", stop=30)
    assert text == "[" * 64 + "]" * 64


def test_nesting_of_a_recursive_schema_ends(writer: ConstraintWriter) -> None:
    node = {"type": "object", "properties": {"n": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["n"]}
    assert json.loads(writer.write(json.dumps(node), 1, limit=2000, stubborn=b'{"n: '))


@pytest.mark.parametrize("stubborn", [b"0123456789", b"9e", b"0.", b"-1", b"0e-+"])
def test_numbers_in_plain_json_end(writer: ConstraintWriter, stubborn: bytes) -> None:
    for seed in range(5):
        found = json.loads(writer.write("json", seed, stubborn=stubborn, stop=20, prefix=b'{"a": 1'))
        assert math.isfinite(found["a"])


def test_plain_json_has_no_runs_of_whitespace(writer: ConstraintWriter) -> None:
    text = writer.write("json", 1, limit=40, stubborn=b" \n\t", stop=30, prefix=b'{"a": 1')
    assert text == '{"a": 1}'


def test_a_constant_may_exceed_the_limits(writer: ConstraintWriter) -> None:
    text = '{"const": "12345678901234567890123456789012345"}'
    assert json.loads(writer.write(text, 1)) == "1" + "23456789012345678901234567890123450"[:34]
    deep: Any = None
    for _ in range(60):
        deep = [deep]
    assert json.loads(writer.write(json.dumps({"const": deep}), 1)) == deep


def test_unknown_formats_are_annotations(writer: ConstraintWriter) -> None:
    schema = {
        "type": "object",
        "required": ["file", "key"],
        "properties": {
            "file": {"type": "string", "format": "path", "maxLength": 5},
            "key": {
                "anyOf": [{"format": "password", "maxLength": 5}, {"type": "null", "format": "x"}],
                "type": "string",
            },
            "day": {"type": "string", "format": "date"},
            "size": {"type": "integer", "format": "int64"},
        },
    }
    assert unknown_formats(schema) == ["path", "password"]
    assert set(json.loads(writer.write(json.dumps(schema), 1))) >= {"file", "key"}


def test_digits_in_patterns_are_ascii(writer: ConstraintWriter) -> None:
    schema = {"type": "string", "pattern": r"^\d{3}[\d_]\\d$"}
    for seed in range(40):
        assert re.fullmatch(r"[0-9]{3}[0-9_]\\d", json.loads(writer.write(json.dumps(schema), seed)))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "number", "multipleOf": 0.07}, "multipleOf: this step is not exact in binary"),
        ({"type": "number", "minimum": 3, "maximum": 2}, "Unsatisfiable schema"),
        ({"type": "string", "pattern": "a{3}", "maxLength": 2}, "no text matches pattern"),
        ({"type": "string", "pattern": "("}, "pattern: unclosed group"),
        ({"type": "string", "pattern": "a" * 70_000}, "pattern: it may have 64 KiB of text at most"),
        ({"type": "text"}, "Invalid type: text"),
        ({"multipleOf": 0}, "multipleOf: it must be greater than 0"),
        ({"$ref": "#/$defs/missing"}, "Pointer '/$defs/missing' does not exist"),
    ],
)
def test_errors_name_the_place_in_the_schema(writer: ConstraintWriter, schema: dict[str, Any], reason: str) -> None:
    inner = {"type": "object", "properties": {"a": {"type": "string"}, "x": schema}, "required": ["x"]}
    format = json.dumps({"$defs": {"part": inner}, "type": "array", "minItems": 1, "items": inner})
    with pytest.raises(BadRequest) as error:
        writer.compiler.compile(format)
    assert error.value.message.startswith(f"invalid format: {reason}")
    assert error.value.message.endswith(".properties.x)")
