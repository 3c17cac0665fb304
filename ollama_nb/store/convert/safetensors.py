"""Tensors of a safetensors file: a bounded header, and data that is mapped and read one tensor at a time."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ollama_nb.errors import CorruptModel

MAX_HEADER = 100 << 20
MAX_TENSORS = 1 << 18
MAX_DIMENSIONS = 8

Array = npt.NDArray[Any]

_TYPES: dict[str, npt.DTypeLike] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_QUANTISED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor with its shape (slowest dimension first); ``load`` reads it as float16 or float32."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def named(self, name: str) -> Tensor:
        return replace(self, name=name)

    def changed(self, change: Callable[[Array], Array], shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor with a change that happens when it is loaded; ``shape`` where the change alters it."""
        load = self.load
        return replace(self, shape=self.shape if shape is None else shape, load=lambda: change(load()))


def read_safetensors(path: Path, source: str) -> Iterator[Tensor]:
    """Every tensor of a file, in the order of its data. ``source``: its name for error texts.

    Raises CorruptModel for a header that is none, or that names bytes which are not there.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size - 8):
            raise _corrupt(source, "its header is longer than the file or 100 MiB")
        header = _header(file.read(length), source)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    first, found = 8 + length, []
    for name, entry in header.items():
        if name != "__metadata__":
            found.append((_span(entry, size - first, name, source), name, entry))
    for span, name, entry in sorted(found, key=lambda one: one[0]):
        yield _tensor(data, first, span, name, entry, source)


def _header(raw: bytes, source: str) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _corrupt(source, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise _corrupt(source, "its header is no list of tensors")
    return header


def _span(entry: Any, available: int, name: str, source: str) -> tuple[int, int]:
    span = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(span, list) or len(span) != 2 or not all(type(at) is int for at in span):
        raise _corrupt(source, f"tensor {name!r} has no place")
    if not 0 <= span[0] <= span[1] <= available:
        raise _corrupt(source, f"tensor {name!r} reaches beyond the end of the file")
    return span[0], span[1]


def _tensor(data: mmap.mmap, first: int, span: tuple[int, int], name: str, entry: Any, source: str) -> Tensor:
    kind, shape = entry.get("dtype"), entry.get("shape")
    if kind in _QUANTISED:
        raise CorruptModel(f"{source}: tensor {name!r} is stored as {kind}; convert a checkpoint of BF16, F16 or F32")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _corrupt(source, f"tensor {name!r} has the unknown type {kind!r}")
    good = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
    stored = np.dtype(_TYPES[kind])
    if not good or math.prod(shape) * stored.itemsize != span[1] - span[0]:
        raise _corrupt(source, f"tensor {name!r} has a shape that does not fit its bytes")
    count, offset = math.prod(shape), first + span[0]

    def load() -> Array:
        return _floats(np.frombuffer(data, stored, count, offset), kind).reshape(shape)

    return Tensor(name, tuple(shape), load)


def _floats(stored: Array, kind: str) -> Array:
    """float16 and float32 as they are, everything else as float32; bfloat16 is the upper half of a float32."""
    if kind == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored if kind in ("F16", "F32") else stored.astype(np.float32)


def _corrupt(source: str, reason: str) -> CorruptModel:
    return CorruptModel(f"{source} is not a usable safetensors file: {reason}")
