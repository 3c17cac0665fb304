"""Small GGUF files made byte by byte: valid ones, and ones with exactly one defect."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}

Pair = tuple[str, int, Any]
"""Key, value type, value; an array's value is ``(item type, items)``."""

Tensor = tuple[str, Sequence[int], int, int]
"""Name, dimensions, type number, offset."""

TINY: tuple[Pair, ...] = (
    ("general.architecture", STRING, "test"),
    ("general.file_type", U32, 1),
    ("test.block_count", U32, 1),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "你"])),
    ("tokenizer.ggml.scores", ARRAY, (F32, [0.0, 1.0, 2.0])),
)


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        item, items = content
        return struct.pack("<IQ", item, len(items)) + b"".join(value(item, one) for one in items)
    return struct.pack("<" + _CODES[kind], content)


def gguf(
    pairs: Sequence[Pair] = TINY,
    tensors: Sequence[Tensor] = (("w", (4,), 0, 0),),
    *,
    data: bytes = bytes(32),
    version: int = 3,
    magic: bytes = b"GGUF",
    tensor_count: int | None = None,
    pair_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts in its header can be wrong."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    out = magic + struct.pack("<IQQ", version, *counts)
    for key, kind, content in pairs:
        out += text(key) + struct.pack("<I", kind) + value(kind, content)
    for name, dimensions, kind, offset in tensors:
        out += text(name) + struct.pack("<I", len(dimensions)) + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        out += struct.pack("<IQ", kind, offset)
    return out + bytes(-len(out) % alignment) + data
