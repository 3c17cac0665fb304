"""Read checkpoints: the files of the folder, and tensors in safetensors files.

The header of a safetensors file is limited in size; tensor data is memory-mapped and loaded one tensor at a time.
"""

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

from ollama_nb.errors import BadRequest, CorruptModel

MAX_HEADER = 100 << 20  # bytes of a safetensors header
MAX_TENSORS = 1 << 18  # tensors of one file
MAX_DIMENSIONS = 8  # dimensions of a tensor

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
MAX_JSON = 128 << 20
"""Bytes; the size limit of text files. The tokenizers of the largest vocabularies have about 35 MB."""

_TEXTS = ("*.json", "*.jinja", "*.txt", "*/*.json")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor with its shape (slowest dimension first). ``load`` returns its values as float16 or float32."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def renamed(self, name: str) -> Tensor:
        """Return the tensor under another name."""
        return replace(self, name=name)

    def transformed(self, change: Callable[[Array], Array], shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the tensor with a function applied on load. ``shape`` is the new shape, if it changes."""
        load = self.load
        return replace(self, shape=self.shape if shape is None else shape, load=lambda: change(load()))


def read_safetensors(path: Path, source: str) -> Iterator[Tensor]:
    """Yield the tensors of a file in the order of their data. ``source`` is the file name for messages.

    Raises CorruptModel for an invalid header, or one that refers to missing data.
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
        raise _corrupt(source, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise _corrupt(source, "its header is not a JSON object of tensors")
    return header


def _span(entry: Any, available: int, name: str, source: str) -> tuple[int, int]:
    span = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(span, list) or len(span) != 2 or not all(type(at) is int for at in span):
        raise _corrupt(source, f"tensor {name!r} has no valid data_offsets")
    if not 0 <= span[0] <= span[1] <= available:
        raise _corrupt(source, f"tensor {name!r} extends beyond the end of the file")
    return span[0], span[1]


def _tensor(data: mmap.mmap, first: int, span: tuple[int, int], name: str, entry: Any, source: str) -> Tensor:
    kind, shape = entry.get("dtype"), entry.get("shape")
    if kind in _QUANTISED:
        raise CorruptModel(f"{source}: tensor {name!r} is stored as {kind}; use a checkpoint in BF16, F16 or F32")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _corrupt(source, f"tensor {name!r} has the unknown type {kind!r}")
    valid = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
    stored = np.dtype(_TYPES[kind])
    if not valid or math.prod(shape) * stored.itemsize != span[1] - span[0]:
        raise _corrupt(source, f"tensor {name!r} has a shape that does not match its size")
    count, offset = math.prod(shape), first + span[0]

    def load() -> Array:
        return _floats(np.frombuffer(data, stored, count, offset), kind).reshape(shape)

    return Tensor(name, tuple(shape), load)


def _floats(stored: Array, kind: str) -> Array:
    """Return float16 and float32 unchanged, other types as float32. (bfloat16 is the upper half of a float32.)"""
    if kind == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored if kind in ("F16", "F32") else stored.astype(np.float32)


def _corrupt(source: str, reason: str) -> CorruptModel:
    return CorruptModel(f"{source} is not a usable safetensors file: {reason}")


class Checkpoint:
    """A folder with a model in training format. Raises BadRequest for missing files, CorruptModel for invalid ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for pattern in _TEXTS:
            for path in folder.glob(pattern):
                if path.stat().st_size > MAX_JSON:
                    raise BadRequest(f"{path.name} is larger than {MAX_JSON >> 20} MiB")
        self.config = self.json("config.json")

    @property
    def architecture(self) -> str:
        """The architecture in config.json, such as ``LlamaForCausalLM``. Raises BadRequest if it is missing."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise BadRequest("unknown architecture: config.json has no 'architectures'")
        return names[0]

    def has(self, name: str) -> bool:
        """Return whether the folder has a file of this name."""
        return (self.folder / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object; empty if the file does not exist."""
        if not self.has(name):
            return {}
        try:
            found = json.loads((self.folder / name).read_bytes())
        except (ValueError, RecursionError) as error:
            raise CorruptModel(f"{name} is not valid JSON: {error}") from error
        if not isinstance(found, dict):
            raise CorruptModel(f"{name} is not a JSON object")
        return found

    def lines(self, name: str) -> list[str]:
        """Read the lines of a text file."""
        try:
            return (self.folder / name).read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise CorruptModel(f"{name} is not UTF-8 text") from error

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors, file by file. Raises CorruptModel if a tensor of the index is missing.

        Only the first group of files is read, because some checkpoints contain a second copy in another layout.
        """
        found = (sorted(self.folder.glob(f"{name}.safetensors")) for name in ("model*", "adapter*", "*"))
        seen: dict[str, str] = {}
        for path in next((paths for paths in found if paths), []):
            for tensor in read_safetensors(path, path.name):
                if tensor.name in seen:
                    raise BadRequest(
                        f'"{seen[tensor.name]}" and "{path.name}" both have the tensor {tensor.name!r}: '
                        "they are two models, name one of them"
                    )
                seen[tensor.name] = path.name
                yield tensor
        indexed = self.json("model.safetensors.index.json").get("weight_map")
        missing = sorted(set(indexed) - seen.keys()) if isinstance(indexed, dict) else []
        if missing:
            file = indexed[missing[0]] if isinstance(indexed, dict) else ""
            raise CorruptModel(f"the checkpoint is not complete: {len(missing)} tensors are missing, such as {file}")
