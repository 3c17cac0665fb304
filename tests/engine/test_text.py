"""Token bytes become complete characters, stop strings are removed, and endless repetition is detected."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.engine.text import MAX_REPEATS, RepetitionDetector, TextStream


def run(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, bool]:
    stream = TextStream(stops)
    text = ""
    for piece in pieces:
        text += stream.feed(piece)
        if stream.stopped:
            return text, True
    return text + stream.end(), stream.stopped


def test_a_character_of_several_tokens_is_returned_once_complete() -> None:
    stream = TextStream()
    assert [stream.feed(bytes([byte])) for byte in "你".encode()] == ["", "", "你"]


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="aé你😀", max_size=8),
    st.integers(0, 32),
    st.lists(st.integers(1, 4)),
    st.sampled_from(["", "END"]),
)
def test_an_incomplete_character_at_the_end_is_left_out(text: str, length: int, sizes: list[int], stop: str) -> None:
    """However the bytes are split over tokens, and wherever the reply is cut."""
    data = text.encode()[:length]
    whole, pieces = data.decode("utf-8", "ignore"), []
    for size in [*sizes, len(data)]:
        pieces.append(data[:size])
        data = data[size:]
    assert run(pieces, (stop,)) == (whole, False)


def test_bytes_that_are_no_character_are_replaced_wherever_they_are() -> None:
    assert run([b"a\xff", b"b\xe4", b"c\xff"]) == ("a\ufffdb\ufffdc\ufffd", False)


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stopped"),
    [
        ([b"one", b" EN", b"D two"], ("END",), "one ", True),
        ([b"one", b" EN", b" two"], ("END",), "one EN two", False),
        ([b"one EN"], ("END",), "one EN", False),
        ([b"a\n", b"\n", b"b"], ("\n\n",), "a", True),
        (["你".encode()[:2], "你".encode()[2:] + "好".encode(), b"x"], ("好",), "你", True),
        ([b"abc"], ("",), "abc", False),
        ([b"x<|im", b"_end|>"], ("<|im_end|>", "<|im"), "x", True),
    ],
)
def test_stop_strings(pieces: list[bytes], stops: tuple[str, ...], text: str, stopped: bool) -> None:
    assert run(pieces, stops) == (text, stopped)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab你\n", max_size=30), st.lists(st.integers(1, 5)), st.lists(st.text("ab你\n", max_size=3)))
def test_chunking_changes_nothing(text: str, sizes: list[int], stops: list[str]) -> None:
    data, pieces = text.encode(), []
    for size in [*sizes, len(data)]:
        pieces.append(data[:size])
        data = data[size:]
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    assert run(pieces, tuple(stops)) == ((text[: min(ends)], True) if ends else (text, False))


def test_repetition_of_one_chunk_is_detected() -> None:
    detector = RepetitionDetector()
    assert not any(detector.detect(chunk) for chunk in [" a", "b", "a"] * 50)
    assert [detector.detect(" x ") for _ in range(MAX_REPEATS + 2)] == [False] * (MAX_REPEATS + 1) + [True]
