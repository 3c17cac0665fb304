"""How an embedding model makes one vector of many: told by the files of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gguf

from ollama_nb.errors import BadRequest
from ollama_nb.store.convert.checkpoint import Checkpoint
from ollama_nb.store.convert.safetensors import Tensor, read_safetensors

_FLAGS = {
    "pooling_mode_mean_tokens": gguf.PoolingType.MEAN,
    "pooling_mode_cls_token": gguf.PoolingType.CLS,
    "pooling_mode_lasttoken": gguf.PoolingType.LAST,
}
_NAMES = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS, "lasttoken": gguf.PoolingType.LAST}


def describe_pooling(out: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    """Write the pooling of ``modules.json``, where the checkpoint has one. Raises BadRequest for an unknown kind."""
    folder = _pooling_folder(checkpoint)
    if folder is None:
        return
    settings = checkpoint.json(f"{folder}/config.json")
    kind = next(
        (kind for flag, kind in _FLAGS.items() if settings.get(flag)), _NAMES.get(str(settings.get("pooling_mode")))
    )
    if kind is None:
        raise BadRequest(f"{folder}/config.json asks for a pooling that is none of mean, cls and lasttoken")
    out.add_pooling_type(kind)


def dense_layers(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """The matrices behind the pooling, by llama.cpp's names. Raises BadRequest for those that it cannot apply."""
    for at, folder in enumerate(_folders(checkpoint, "Dense")):
        settings = checkpoint.json(f"{folder}/config.json")
        plain = str(settings.get("activation_function")).endswith("Identity") and not settings.get("bias")
        path = checkpoint.folder / folder / "model.safetensors"
        tensors = {tensor.name: tensor for tensor in read_safetensors(path, str(path.name))} if path.is_file() else {}
        if at > 1 or not plain or [*tensors] != ["linear.weight"] or len(tensors["linear.weight"].shape) != 2:
            raise BadRequest(f"{folder}: llama.cpp applies two plain matrices behind the pooling, and nothing else")
        yield f"dense_{at + 2}", tensors["linear.weight"]


def _pooling_folder(checkpoint: Checkpoint) -> str | None:
    return next(iter(_folders(checkpoint, "Pooling")), None)


def _folders(checkpoint: Checkpoint, kind: str) -> list[str]:
    """Where ``modules.json`` says that modules of a kind lie: one level down, never where it could lead elsewhere."""
    if not checkpoint.has("modules.json"):
        return []
    modules: Any = json.loads((checkpoint.folder / "modules.json").read_bytes())
    listed = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    paths = [str(module.get("path")) for module in listed if str(module.get("type")).endswith(kind)]
    return [path for path in paths if path and "/" not in path and ".." not in path]
