"""The stream reader: any chunking of a stream gives the same objects, and a cut is always noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.client.http import parse_stream
from ollama_nb.errors import ConnectError, OllamaError

VALUES = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key != "error"),
    st.one_of(st.text(), st.integers(), st.booleans()),
    max_size=3,
)


def chunked(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts})
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]


def is_last(found: dict[str, Any]) -> bool:
    return bool(found.get("done"))


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=6), st.lists(st.integers(0, 400), max_size=8), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_any_chunking_gives_the_same_objects(values: list[dict[str, Any]], cuts: list[int], end: str) -> None:
    values = [*values, {"done": True}]
    data = "".join(json.dumps(value, ensure_ascii=False) + end for value in values).encode()
    assert list(parse_stream(chunked(data, cuts), is_last)) == values


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=4), st.data())
def test_every_cut_is_noticed(values: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = "".join(json.dumps(value) + "\n" for value in [*values, {"done": True}]).encode()
    cut = data.draw(st.integers(0, len(whole) - 2))  # without the line feed alone, nothing is lost
    with pytest.raises(ConnectError, match="before the answer was complete"):
        list(parse_stream([whole[:cut]], is_last))


def test_the_last_line_feed_may_be_missing() -> None:
    assert list(parse_stream([b'{"done": true}'], is_last)) == [{"done": True}]


def test_an_error_line_is_raised_after_what_came_before() -> None:
    stream = parse_stream([b'{"a": 1}\n{"error": "\xe5\x9d\x8f"}\n'], is_last)
    assert next(stream) == {"a": 1}
    with pytest.raises(OllamaError, match="坏"):
        next(stream)


@pytest.mark.parametrize("line", [b"[1]", b"3", b'"text"'])
def test_a_line_that_is_no_object(line: bytes) -> None:
    with pytest.raises(OllamaError, match="where a JSON object was expected"):
        list(parse_stream([line + b"\n"], is_last))


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(OllamaError, match="more than 8000000 bytes"):
        list(parse_stream([b"x" * 1_000_000] * 9, is_last))
