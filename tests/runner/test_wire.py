"""Frames between the server and its children: messages from chunks of any size, one error class for invalid data."""

from __future__ import annotations

import struct

import pytest

from ollama_nb.errors import RunnerCrashed
from ollama_nb.runner import wire

WHOLE = (wire.Tokenize(id=1, texts=("a", "你")), wire.Ping(), wire.Cancel(7))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_chunks_of_any_size_give_the_same_messages(size: int) -> None:
    data = b"".join(map(wire.frame, WHOLE))
    reader = wire.FrameReader(wire.ToRunner)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert [message for piece in pieces for message in reader.feed(piece)] == list(WHOLE)


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        framed(b""),
        framed(b"\xc1"),
        framed(wire.frame(wire.Ping())[4:] + b"\x00"),
        framed(wire.frame(wire.Pong(0.5))[4:]),
        framed(wire.frame(wire.Tokenize(id=1, texts=("ab",)))[4:].replace(b"ab", b"\xed\xa0")),
        struct.pack("<I", wire.MAX_FRAME + 1),
    ],
    ids=["nothing", "no msgpack", "something behind", "a message of others", "no UTF-8", "too long"],
)
def test_invalid_frames(data: bytes) -> None:
    with pytest.raises(RunnerCrashed, match="invalid message frame"):
        list(wire.FrameReader(wire.ToRunner).feed(data))
