"""The base class of all converters: hyperparameters of config.json, GGUF names of tensors, storage types, pooling.

A subclass declares its architecture and overrides how hyperparameters are written and how tensors are mapped
(``map_tensor``) or added (``extra_tensors``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import gguf
import numpy as np

from ollama_nb.errors import BadRequest, CorruptModel
from ollama_nb.store.convert.checkpoint import Array, Checkpoint, Tensor, read_safetensors

MAX_BLOCKS = 4096  # layers of a model
_SKIPPED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq", ".position_ids")
_MULTIMODAL = ("vision_tower.", "multi_modal_projector.", "vision_model.", "audio_tower.", "visual.")
_FULL_PRECISION = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight", "token_types.weight")
_FLAGS = {
    "pooling_mode_mean_tokens": gguf.PoolingType.MEAN,
    "pooling_mode_cls_token": gguf.PoolingType.CLS,
    "pooling_mode_lasttoken": gguf.PoolingType.LAST,
}
_NAMES = {
    "mean": gguf.PoolingType.MEAN,
    "cls": gguf.PoolingType.CLS,
    "lasttoken": gguf.PoolingType.LAST,
}  # values of pooling_mode


class CheckpointConverter:
    """Converts one checkpoint. ``config`` is config.json, with the keys of the text model on top."""

    arch: ClassVar[gguf.MODEL_ARCH]
    prefixes: ClassVar[tuple[str, ...]] = ()
    """Prefixes of tensor names to strip; the longest match is used."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        inner = config.get("text_config")
        self.config: dict[str, Any] = {**config, **(inner if isinstance(inner, dict) else {})}
        self.blocks = self.number("num_hidden_layers", "n_layers", "num_layers", "n_layer")
        if not 0 < self.blocks <= MAX_BLOCKS:
            raise CorruptModel(f"config.json declares {self.blocks} layers (1 to {MAX_BLOCKS} are supported)")
        self.names = gguf.get_tensor_name_map(self.arch, self.blocks)
        self.experts = ExpertStack(self.find("num_local_experts", "num_experts") or 0)
        self.text_only = False
        """Whether image or audio tensors were skipped."""

    # -- hyperparameters -------------------------------------------------------------------------------------------

    def find(self, *keys: str) -> Any:
        """Return the first value that is present under one of these keys, or None."""
        return next((self.config[key] for key in keys if self.config.get(key) is not None), None)

    def number(self, *keys: str) -> int:
        """Return a positive integer. Raises CorruptModel if it is missing or not valid."""
        value = self.find(*keys)
        if type(value) is not int or value <= 0:
            raise CorruptModel(f"{keys[0]!r} in config.json is missing or not a positive integer")
        return value

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        return self.number("num_attention_heads", "n_heads", "n_head")

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.number("num_key_value_heads", "n_kv_heads", "num_attention_heads", "n_heads")

    @property
    def head_size(self) -> int:
        """The dimensions of an attention head."""
        own = self.find("head_dim")
        return own if type(own) is int and own > 0 else self.number("hidden_size") // self.heads

    @property
    def rope(self) -> dict[str, Any]:
        """The RoPE parameters ``rope_type``, ``factor``, ``rope_theta``, …, from any of the keys that contain them."""
        found = self.find("rope_parameters", "rope_scaling")
        rope = dict(found) if isinstance(found, dict) else {}
        rope = dict(rope["full_attention"]) if isinstance(rope.get("full_attention"), dict) else rope
        rope.setdefault("rope_type", rope.get("type"))
        for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
            if rope.get(key) is None:
                rope[key] = self.find(key)
        return rope

    def describe(self, out: gguf.GGUFWriter) -> None:
        """Write the hyperparameters."""
        out.add_block_count(self.blocks)
        out.add_context_length(self.number("max_position_embeddings", "n_positions", "max_sequence_length"))
        out.add_embedding_length(self.number("hidden_size", "n_embd"))
        out.add_feed_forward_length(self.number("intermediate_size", "n_inner"))
        out.add_head_count(self.heads)
        if self.find("num_key_value_heads") is not None:
            out.add_head_count_kv(self.kv_heads)
        if (eps := self.find("rms_norm_eps")) is not None:
            out.add_layer_norm_rms_eps(eps)
        if (eps := self.find("layer_norm_eps", "layer_norm_epsilon")) is not None:
            out.add_layer_norm_eps(eps)
        if (size := self.find("head_dim")) is not None:
            out.add_key_length(size)
            out.add_value_length(size)
        if (count := self.find("num_local_experts", "num_experts")) is not None:
            out.add_expert_count(count)
            out.add_expert_used_count(self.number("num_experts_per_tok"))
        self._describe_rope(out)

    def _describe_rope(self, out: gguf.GGUFWriter) -> None:
        rope = self.rope
        if (theta := rope["rope_theta"]) is not None:
            out.add_rope_freq_base(theta)
        kind, factor = rope["rope_type"], rope.get("factor")
        if kind == "linear" and factor is not None:
            out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            out.add_rope_scaling_factor(factor)
        elif kind == "yarn" and factor is not None:
            out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            out.add_rope_scaling_factor(factor)
            trained = rope["original_max_position_embeddings"] or self.number("max_position_embeddings")
            out.add_rope_scaling_orig_ctx_len(trained)
        elif kind in ("su", "longrope"):
            out.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        elif kind not in (None, "default", "llama3", "linear", "yarn"):
            raise BadRequest(f"unsupported rope scaling {kind!r}")

    # -- vocabulary ------------------------------------------------------------------------------------------------

    def describe_tokenizer(self, out: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
        """Write the keys that this architecture needs beside the vocabulary."""

    # -- tensors ---------------------------------------------------------------------------------------------------

    def tensors(self, stored: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the tensors of the GGUF: extra tensors, then those of the checkpoint in their order."""
        yield from self.extra_tensors()
        for tensor in stored:
            if any(part in tensor.name for part in _MULTIMODAL):
                self.text_only = True
            elif not tensor.name.endswith(_SKIPPED):
                yield from self.map_tensor(self.strip_prefix(tensor))
        self.experts.done()

    def strip_prefix(self, tensor: Tensor) -> Tensor:
        """Return the tensor without the name prefix that model wrappers add."""
        fitting = [prefix for prefix in self.prefixes if tensor.name.startswith(prefix)]
        return tensor.renamed(tensor.name.removeprefix(max(fitting, key=len))) if fitting else tensor

    def extra_tensors(self) -> Iterator[Tensor]:
        """Yield tensors that are not in the checkpoint, such as RoPE scaling factors."""
        yield from ()

    def map_tensor(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield the tensors of the GGUF that correspond to one tensor of the checkpoint; none if it is not needed.

        Implementations may permute rows (the first dimension) only, so that this also works for LoRA B matrices.
        """
        yield tensor.renamed(self.gguf_name(tensor.name))

    def gguf_name(self, name: str) -> str:
        """Return the GGUF name of a tensor. Raises BadRequest if the architecture does not have it."""
        found = self.names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise BadRequest(f"tensor {name!r} is not part of the architecture {gguf.MODEL_ARCH_NAMES[self.arch]!r}")
        return found


class ExpertStack:
    """Stacks the tensors of single experts into one three-dimensional tensor per layer and matrix."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: dict[str, dict[int, Tensor]] = {}

    def add(self, name: str, index: int, tensor: Tensor) -> Iterator[Tensor]:
        """Add one expert; yield the stacked tensor ``name`` when all experts are there."""
        got = self._waiting.setdefault(name, {})
        got[index] = tensor
        if len(got) == self._count:
            del self._waiting[name]
            yield stack_tensors(name, [got[at] for at in sorted(got)])

    def done(self) -> None:
        """Raise CorruptModel if experts are missing."""
        if self._waiting:
            raise CorruptModel(f"experts are missing: {min(self._waiting)}")


def stack_tensors(name: str, tensors: list[Tensor]) -> Tensor:
    """Stack tensors of the same shape along a new first dimension."""
    shape = tensors[0].shape
    if any(tensor.shape != shape for tensor in tensors):
        raise CorruptModel(f"the experts of {name!r} differ in shape")
    return Tensor(name, (len(tensors), *shape), lambda: np.stack([tensor.load() for tensor in tensors]))


def interleave_rows(rows: Array, heads: int) -> Array:
    """Permute the rows of Q or K for llama.cpp's RoPE: adjacent pairs instead of the two halves of a head."""
    if not heads or rows.shape[0] % (2 * heads):
        raise CorruptModel(f"{rows.shape[0]} rows cannot be split into {heads} heads")
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def storage_type(tensor: Tensor, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """Return the storage type: F32 for vectors, norms, routers and position embeddings, else ``wanted``."""
    name = tensor.name
    small = len(tensor.shape) <= 1 or name.endswith(("_norm.weight", *_FULL_PRECISION))
    if small or not name.endswith((".weight", ".lora_a", ".lora_b")):
        return gguf.GGMLQuantizationType.F32
    return wanted


def vector_tensor(name: str, values: list[float]) -> Tensor:
    """Return a float32 vector as tensor. Raises CorruptModel for infinite values and NaN."""
    array = np.array(values, np.float32)
    if not all(math.isfinite(value) for value in values):
        raise CorruptModel(f"{name!r} has values that are not finite numbers")
    return Tensor(name, array.shape, lambda: array)


def describe_pooling(out: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    """Write the pooling type of a sentence-transformers checkpoint, if any. Raises BadRequest for an unknown type."""
    folder = _pooling_folder(checkpoint)
    if folder is None:
        return
    settings = checkpoint.json(f"{folder}/config.json")
    kind = next(
        (kind for flag, kind in _FLAGS.items() if settings.get(flag)), _NAMES.get(str(settings.get("pooling_mode")))
    )
    if kind is None:
        raise BadRequest(
            f"{folder}/config.json requests an unsupported pooling (supported are mean, cls and lasttoken)"
        )
    out.add_pooling_type(kind)


def dense_layers(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield the dense layers after the pooling with llama.cpp's names. Raises BadRequest for unsupported layers."""
    for at, folder in enumerate(_folders(checkpoint, "Dense")):
        settings = checkpoint.json(f"{folder}/config.json")
        strip_prefix = str(settings.get("activation_function")).endswith("Identity") and not settings.get("bias")
        path = checkpoint.folder / folder / "model.safetensors"
        tensors = {tensor.name: tensor for tensor in read_safetensors(path, str(path.name))} if path.is_file() else {}
        if at > 1 or not strip_prefix or [*tensors] != ["linear.weight"] or len(tensors["linear.weight"].shape) != 2:
            raise BadRequest(
                f"{folder}: llama.cpp supports two dense layers after the pooling, without bias and activation"
            )
        yield f"dense_{at + 2}", tensors["linear.weight"]


def _pooling_folder(checkpoint: Checkpoint) -> str | None:
    return next(iter(_folders(checkpoint, "Pooling")), None)


def _folders(checkpoint: Checkpoint, kind: str) -> list[str]:
    """Return the folders of a kind of module in ``modules.json``; only direct subfolders are accepted."""
    if not checkpoint.has("modules.json"):
        return []
    modules: Any = json.loads((checkpoint.folder / "modules.json").read_bytes())
    listed = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    paths = [str(module.get("path")) for module in listed if str(module.get("type")).endswith(kind)]
    return [path for path in paths if path and "/" not in path and ".." not in path]
