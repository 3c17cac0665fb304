"""NDJSON in: bytes in any chunking → JSON objects. Pure; knows no socket.

A line with a truthy ``error`` raises it; a stream that stops before its last object raises ConnectError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ollama_nb.errors import ConnectionLost, OllamaError

MAX_LINE = 8_000_000
CUT_OFF = "the connection to the server was lost before the answer was complete"


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split into lines without their line feeds; what follows the last line feed comes as a line of its own."""
    buffer = bytearray()
    for chunk in chunks:
        searched = len(buffer)
        buffer += chunk
        end = buffer.find(b"\n", searched)
        while end >= 0:
            yield bytes(buffer[:end])
            del buffer[: end + 1]
            end = buffer.find(b"\n")
        if len(buffer) > MAX_LINE:
            raise OllamaError(f"the server sent a line of more than {MAX_LINE} bytes")
    if buffer:
        yield bytes(buffer)


def objects(chunks: Iterable[bytes], is_last: Callable[[dict[str, Any]], bool]) -> Iterator[dict[str, Any]]:
    """Yield each line's object. A stream without an object that ``is_last`` was cut off: ConnectError."""
    complete = False
    for line in lines(chunks):
        if not line.strip():
            continue
        found = _object(line)
        if error := found.get("error"):
            raise OllamaError(str(error))
        complete = complete or is_last(found)
        yield found
    if not complete:
        raise ConnectionLost(CUT_OFF)


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        # No proper prefix of an object is JSON, so half a line always ends here.
        raise ConnectionLost(f"{CUT_OFF} (it ends with {_shortened(line)})") from None
    if not isinstance(found, dict):
        raise OllamaError(f"the server sent {_shortened(line)} where a JSON object was expected")
    return found


def _shortened(line: bytes) -> str:
    text = line[-60:].decode("utf-8", "replace")
    return repr(text if len(line) <= 60 else "…" + text)
