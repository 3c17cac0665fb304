"""A folder with a model as it was trained: configuration, tokenizer, tensors in one or several safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ollama_nb.errors import BadRequest, CorruptModel
from ollama_nb.store.convert.safetensors import Tensor, read_safetensors

MAX_JSON = 128 << 20
"""Bytes of any text beside the weights; the tokenizers of the largest vocabularies have about 35 MB."""

_TEXTS = ("*.json", "*.jinja", "*.txt", "*/*.json")


class Checkpoint:
    """Reads on demand. Raises BadRequest for what is missing, CorruptModel for what is broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for pattern in _TEXTS:
            for path in folder.glob(pattern):
                if path.stat().st_size > MAX_JSON:
                    raise BadRequest(f"{path.name} is larger than {MAX_JSON >> 20} MiB")
        self.config = self.json("config.json")

    @property
    def architecture(self) -> str:
        """As the checkpoint names it: ``LlamaForCausalLM``. Raises BadRequest when it does not."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise BadRequest("unknown architecture: config.json names none")
        return names[0]

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; an empty one when there is no such file."""
        if not self.has(name):
            return {}
        try:
            found = json.loads((self.folder / name).read_bytes())
        except (ValueError, RecursionError) as error:
            raise CorruptModel(f"{name} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise CorruptModel(f"{name} is not a JSON object")
        return found

    def lines(self, name: str) -> list[str]:
        try:
            return (self.folder / name).read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise CorruptModel(f"{name} is not UTF-8 text") from error

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, file by file. Raises CorruptModel when the index names a tensor that is not there.

        Some checkpoints have a second copy of the model, of another layout, beside the usual files.
        """
        found = (sorted(self.folder.glob(f"{name}.safetensors")) for name in ("model*", "adapter*", "*"))
        seen: set[str] = set()
        for path in next((paths for paths in found if paths), []):
            for tensor in read_safetensors(path, path.name):
                if tensor.name in seen:
                    raise CorruptModel(f"tensor {tensor.name!r} is in several files")
                seen.add(tensor.name)
                yield tensor
        indexed = self.json("model.safetensors.index.json").get("weight_map")
        missing = sorted(set(indexed) - seen) if isinstance(indexed, dict) else []
        if missing:
            file = indexed[missing[0]] if isinstance(indexed, dict) else ""
            raise CorruptModel(f"the checkpoint is not complete: {len(missing)} tensors are missing, such as {file}")
