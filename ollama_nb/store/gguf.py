"""Parse and validate the header of a GGUF file in pure Python, before native code opens the file.

Every count, length and offset is checked against limits and against the size of the file before memory is allocated.
Invalid content of any kind raises CorruptModel.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_nb.api.models import GGUF, TensorInfo
from ollama_nb.disk import store_errors
from ollama_nb.errors import CorruptModel
from ollama_nb.store.quantization import TENSOR_TYPES

MAGIC = b"GGUF"
MAX_STRING = 16 << 20  # bytes of a string
MAX_ARRAY = 64 << 20  # items of an array
MAX_HEADER = 256 << 20  # bytes of the header
MAX_KEYS = 1 << 16  # metadata keys
MAX_TENSORS = 1 << 17  # tensors
MAX_DIMENSIONS = 4  # dimensions of a tensor
MAX_BLOCKS = 4096  # layers of a model
MAX_KEPT_ITEMS = 4 << 20
"""Limit for array items in memory; further arrays are None, as without ``arrays``."""

_WINDOW = 1 << 20  # bytes that are read at a time
_STRING, _ARRAY = 8, 9  # numbers of value types
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALAR_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {number: struct.Struct("<" + code) for number, code in _SCALAR_CODES.items()}
_BOOL = 7  # number of the value type
_SMALLEST_PAIR = 8 + 4 + 1  # bytes: length of the key, type, value
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # bytes: length of the name, dimension count, one dimension, type, offset
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


def read_gguf(path: Path, *, arrays: bool = False) -> GGUF:
    """Read and validate the header. Without ``arrays``, arrays that are not empty are None in the metadata.

    Raises CorruptModel if the file is not a valid GGUF file, StoreError if it cannot be opened.
    """
    with store_errors("read", path, reading=True):
        # Without O_NONBLOCK, opening a named pipe would block until it has a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _corrupt("it is not a regular file")
            return _read(_Bytes(descriptor, status.st_size), arrays)
        finally:
            os.close(descriptor)


def gguf_kind(gguf: GGUF) -> str:
    """Return ``model``, ``adapter`` or ``projector``."""
    named = gguf.metadata.get("general.type")
    if named == "adapter":
        return "adapter"
    if named in ("projector", "mmproj"):
        return "projector"
    if gguf.arch("block_count") is None:
        encoders = (gguf.arch("has_vision_encoder"), gguf.arch("has_audio_encoder"))
        if gguf.arch("vision.block_count") or (gguf.architecture == "clip" and any(encoders)):
            return "projector"
    return "model"


def is_gguf(path: Path) -> bool:
    """Return whether a file starts with the GGUF magic."""
    with store_errors("read", path, reading=True), path.open("rb") as file:
        return file.read(4) == MAGIC


def _read(source: _Bytes, arrays: bool) -> GGUF:
    version = _read_version(source)
    tensor_count = source.count(MAX_TENSORS, _SMALLEST_TENSOR, "tensors")
    pair_count = source.count(MAX_KEYS, _SMALLEST_PAIR, "metadata keys")
    metadata: dict[str, Any] = {}
    budget = _ArrayBudget(arrays)
    for _ in range(pair_count):
        key = source.text()
        if not key:
            raise _corrupt("a metadata key has no name")  # llama.cpp would abort
        if key in metadata:
            raise _corrupt(f"the metadata key {_shorten(key)} occurs twice")
        metadata[key] = _read_value(source, budget)
    _check_metadata(metadata)
    tensors = [_read_tensor(source) for _ in range(tensor_count)]
    _check_tensors(tensors, _get_alignment(metadata), source)
    return GGUF(version, metadata, tuple(tensor for tensor, _ in tensors))


def _read_version(source: _Bytes) -> int:
    magic = source.take(4)
    if magic == MAGIC[::-1]:
        raise _corrupt("big-endian files are not supported")
    if magic != MAGIC:
        raise _corrupt("it does not begin with GGUF")
    version = source.u32()
    if version in (2, 3):
        return version
    if version and not version & 0xFFFF:
        raise _corrupt("big-endian files are not supported")
    raise _corrupt(f"version {version} is not supported (2 and 3 are)")


class _Bytes:
    """A bounded stream over the file, read through a window. (A memory map would crash if the file were truncated.)"""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._window = b""
        self._at = 0
        self._window_end = 0
        self.size = size

    @property
    def position(self) -> int:
        return self._window_end - len(self._window) + self._at

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def take(self, count: int) -> bytes:
        self._fill(count)
        data = self._window[self._at : self._at + count]
        self._at += count
        return data

    def skip(self, count: int) -> None:
        self._check_bounds(count)
        if self._at + count <= len(self._window):
            self._at += count
        else:
            self._window_end = self.position + count
            self._window, self._at = b"", 0

    def u32(self) -> int:
        number: int = _U32.unpack(self.take(4))[0]
        return number

    def u64(self) -> int:
        number: int = _U64.unpack(self.take(8))[0]
        return number

    def count(self, limit: int, min_size: int, what: str) -> int:
        """Read a count of items of at least ``min_size`` bytes each, which must fit into the rest of the file."""
        number = self.u64()
        if number > limit or number * min_size > self.remaining:
            raise _corrupt(f"it cannot contain {number} {what}")
        return number

    def text(self) -> str:
        return self.take(self._length()).decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        """Skip strings. Vocabularies have 150,000 and more, so the inner loop makes no Python calls."""
        unpack = _U64.unpack_from
        while count:
            self._fill(8)
            window, at, end = self._window, self._at, len(self._window) - 8
            while count and at <= end:
                length = unpack(window, at)[0]
                if length > MAX_STRING:
                    raise _corrupt(f"a string of {length} bytes is too long")
                at += 8 + length
                count -= 1
            self.skip(at - self._at)

    def _length(self) -> int:
        length = self.u64()
        if length > MAX_STRING:
            raise _corrupt(f"a string of {length} bytes is too long")
        return length

    def _fill(self, count: int) -> None:
        """Make the next ``count`` bytes available in the window."""
        self._check_bounds(count)
        missing = self._at + count - len(self._window)
        if missing <= 0:
            return
        fresh = os.pread(self._descriptor, max(missing, _WINDOW), self._window_end)
        if len(fresh) < missing:
            raise _corrupt("it is truncated")
        self._window_end += len(fresh)
        self._window, self._at = self._window[self._at :] + fresh, 0

    def _check_bounds(self, count: int) -> None:
        if count > self.remaining:
            raise _corrupt("it is truncated")
        if self.position + count > MAX_HEADER:
            raise _corrupt(f"its header is larger than {MAX_HEADER} bytes")


@dataclass
class _ArrayBudget:
    """The budget for arrays in memory."""

    wanted: bool
    items_left: int = MAX_KEPT_ITEMS

    def take(self, items: int) -> bool:
        if not self.wanted or items > self.items_left:
            return False
        self.items_left -= items
        return True


def _read_value(source: _Bytes, budget: _ArrayBudget) -> Any:
    kind = source.u32()
    if kind == _ARRAY:
        return _read_array(source, budget)
    if kind == _STRING:
        return source.text()
    return _read_scalars(source, kind, 1)[0]


def _read_array(source: _Bytes, budget: _ArrayBudget) -> list[Any] | None:
    kind = source.u32()
    if kind != _STRING and kind not in _SCALARS:
        raise _corrupt("an array of arrays" if kind == _ARRAY else f"unknown value type {kind}")
    size = 8 if kind == _STRING else _SCALARS[kind].size
    count = source.count(MAX_ARRAY, size, "array items")
    if not count:
        return []
    if budget.take(count):
        return [source.text() for _ in range(count)] if kind == _STRING else _read_scalars(source, kind, count)
    if kind == _STRING:
        source.skip_texts(count)
    else:
        source.skip(count * size)
    return None


def _read_scalars(source: _Bytes, kind: int, count: int) -> list[Any]:
    if kind not in _SCALARS:
        raise _corrupt(f"unknown value type {kind}")
    form = _SCALARS[kind]
    values = [item for (item,) in form.iter_unpack(source.take(count * form.size))]
    return [bool(value) for value in values] if kind == _BOOL else values


def _read_tensor(source: _Bytes) -> tuple[TensorInfo, int]:
    """Read one tensor; return it with its size in bytes."""
    name = source.text()
    dimensions = source.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _corrupt(f"tensor {_shorten(name)} has {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", source.take(8 * dimensions))
    kind, offset = source.u32(), source.u64()
    stored = TENSOR_TYPES.get(kind)
    if stored is None:
        raise _corrupt(f"tensor {_shorten(name)} has the unknown type {kind}")
    tensor = TensorInfo(name, stored.name, shape, offset)
    if not 0 < tensor.elements < 1 << 63:
        raise _corrupt(f"tensor {_shorten(name)} has the impossible shape {list(shape)}")
    if shape[0] % stored.block:
        raise _corrupt(f"rows of tensor {_shorten(name)} are not whole blocks of {stored.name}")
    return tensor, tensor.elements // stored.block * stored.size


def _check_tensors(tensors: Iterable[tuple[TensorInfo, int]], alignment: int, source: _Bytes) -> None:
    start = -(-source.position // alignment) * alignment
    seen: set[str] = set()
    for tensor, size in tensors:
        if tensor.name in seen:
            raise _corrupt(f"tensor {_shorten(tensor.name)} occurs twice")
        if tensor.offset % alignment:
            raise _corrupt(f"tensor {_shorten(tensor.name)} is not aligned")
        if start + tensor.offset + size > source.size:
            raise _corrupt(f"tensor {_shorten(tensor.name)} extends beyond the end of the file")
        seen.add(tensor.name)


def _check_metadata(metadata: dict[str, Any]) -> None:
    architecture = metadata.get("general.architecture")
    number = metadata.get("split.no")
    if architecture is None and type(number) is int and number > 0:
        return  # only the first shard of a split file has metadata
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
        raise _corrupt("its architecture is missing or not valid")
    for key, value in metadata.items():
        if key.endswith(".block_count"):
            minimum = 1 if key == f"{architecture}.block_count" else 0
            if type(value) is not int or not minimum <= value <= MAX_BLOCKS:
                raise _corrupt(f"{_shorten(key)} is not a number from {minimum} to {MAX_BLOCKS}")


def _get_alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _corrupt("its alignment is not a power of two")
    return alignment


def _shorten(text: str) -> str:
    """Shorten a name from the file for messages."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _corrupt(reason: str) -> CorruptModel:
    return CorruptModel(f"not a usable GGUF file: {reason}")
