"""How an embedding model makes one vector of many: told by the files of sentence-transformers."""

from __future__ import annotations

import json
from typing import Any

import gguf

from ollama_nb.errors import BadRequest
from ollama_nb.store.convert.checkpoint import Checkpoint

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


def _pooling_folder(checkpoint: Checkpoint) -> str | None:
    if not checkpoint.has("modules.json"):
        return None
    modules: Any = json.loads((checkpoint.folder / "modules.json").read_bytes())
    for module in modules if isinstance(modules, list) else []:
        if isinstance(module, dict) and str(module.get("type")).endswith("Pooling"):
            path = str(module.get("path"))
            # One level down, as a checkpoint lays it out; nothing that could lead elsewhere.
            return path if path and "/" not in path and ".." not in path else None
    return None
