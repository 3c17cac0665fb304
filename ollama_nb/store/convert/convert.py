"""Convert a checkpoint or a LoRA adapter to one GGUF file.

Adapters are those that peft writes: each pair of matrices is stored under the name of the tensor that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from ollama_nb.errors import BadRequest, CorruptModel
from ollama_nb.store.convert.base import CheckpointConverter, storage_type
from ollama_nb.store.convert.checkpoint import Array, Checkpoint, Tensor
from ollama_nb.store.convert.families import converter_of, converter_of_gguf
from ollama_nb.store.convert.tokenizers import read_vocabulary
from ollama_nb.store.convert.vocabulary import embedding_rows

ConversionProgress = Callable[[int, int], None]
"""Called with the bytes written so far and in total."""

TEXT_ONLY = (
    "warning: only the text model was converted: images and audio require a projector in GGUF (FROM ./mmproj.gguf)"
)

OUTPUTS = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
"""Output types of a conversion. Other types are quantized from these."""
_PREFIXES = ("base_model.model.", "base_model.")  # prefixes that peft adds to tensor names
_INNER, _OUTER = ".lora_A.weight", ".lora_B.weight"
_FROM_GGUF = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}


def convert_model(folder: Path, target: Path, output: str, report: ConversionProgress) -> tuple[str, ...]:
    """Convert the checkpoint in ``folder`` to ``target``; ``output`` is a key of OUTPUTS. Returns notes for the user.

    Raises BadRequest for unsupported checkpoints, CorruptModel for invalid ones.
    """
    checkpoint = Checkpoint(folder)
    kind, file_type = OUTPUTS[output]
    family = converter_of(checkpoint.architecture)(checkpoint.config)
    out = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[family.arch])
    try:
        out.add_type("model")
        family.describe(out)
        out.add_file_type(file_type)
        out.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_vocabulary(family, checkpoint, out)
        tensors = [*family.tensors(checkpoint.tensors())]
        check_layers((tensor.name for tensor in tensors), family.blocks)
        write_tensors(out, iter(tensors), kind, report)
    finally:
        out.close()
    return (TEXT_ONLY,) if family.text_only else ()


def check_layers(names: Iterable[str], layers: int) -> None:
    """Raise CorruptModel if a layer has no tensors at all, as when a file of the checkpoint is missing."""
    found = {name.split(".")[1] for name in names if name.startswith("blk.")}
    missing = [layer for layer in range(layers) if str(layer) not in found]
    if missing:
        raise CorruptModel(
            f"the checkpoint is not complete: it has no tensors of layer {missing[0]} of {layers} (counted from 0)"
        )


def _write_vocabulary(family: CheckpointConverter, checkpoint: Checkpoint, out: gguf.GGUFWriter) -> None:
    vocabulary = read_vocabulary(checkpoint)
    rows = embedding_rows(checkpoint)
    vocabulary.fit(rows)
    vocabulary.write(out, checkpoint)
    family.describe_tokenizer(out, checkpoint)


def write_tensors(
    out: gguf.GGUFWriter, tensors: Iterator[Tensor], wanted: GGMLQuantizationType, report: ConversionProgress
) -> None:
    """Write header and tensors, with one tensor in memory at a time."""
    planned = [(tensor, storage_type(tensor, wanted)) for tensor in tensors]
    for tensor, kind in planned:
        size = tensor.elements * (4 if kind is GGMLQuantizationType.F32 else 2)
        out.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    done, total = 0, sum(info.nbytes for info in out.tensors[0].values())
    for tensor, kind in planned:
        data = _encode(tensor, kind)
        out.write_tensor_data(data)
        done += data.nbytes
        report(done, total)


def _encode(tensor: Tensor, kind: GGMLQuantizationType) -> Array:
    # Values beyond the range of float16 become infinite, as in other converters.
    with np.errstate(over="ignore"):
        encoded: Array = gguf.quants.quantize(np.ascontiguousarray(tensor.load()), kind)
    return encoded


def convert_adapter(folder: Path, target: Path, base: Mapping[str, Any], report: ConversionProgress) -> None:
    """Convert the adapter in ``folder`` to ``target``. ``base`` is the metadata of the GGUF that it applies to.

    Raises BadRequest if it is not a plain LoRA adapter or changes tensors that the base model does not have.
    """
    checkpoint = Checkpoint(folder)
    settings = checkpoint.json("adapter_config.json")
    architecture = str(base.get("general.architecture"))
    family = converter_of_gguf(architecture)(_hyperparameters(base, architecture))
    out = gguf.GGUFWriter(target, architecture)
    try:
        out.add_type("adapter")
        out.add_string("adapter.type", "lora")
        out.add_float32("adapter.lora.alpha", _alpha(settings))
        tensors = sorted(_lora_pairs(checkpoint, family), key=lambda tensor: tensor.name)
        write_tensors(out, iter(tensors), GGMLQuantizationType.F32, report)
    finally:
        out.close()


def _hyperparameters(base: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    values = {key: base.get(f"{architecture}.{name}") for key, name in _FROM_GGUF.items()}
    return {key: value for key, value in values.items() if type(value) is int}


def _alpha(settings: Mapping[str, Any]) -> float:
    kind, alpha, rank = settings.get("peft_type", "LORA"), settings.get("lora_alpha"), settings.get("r")
    if kind != "LORA":
        raise BadRequest(f"adapters of the type {kind} are not supported, only LoRA")
    for option in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"):
        if settings.get(option):
            raise BadRequest(f"adapters with {option} are not supported")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise CorruptModel("adapter_config.json has no lora_alpha")
    # llama.cpp scales by alpha / rank, but a rank-stabilized adapter is scaled by alpha / √rank.
    return float(alpha) * rank**0.5 if settings.get("use_rslora") and isinstance(rank, int) else float(alpha)


def _lora_pairs(checkpoint: Checkpoint, family: CheckpointConverter) -> Iterator[Tensor]:
    inner: dict[str, Tensor] = {}
    outer: dict[str, Tensor] = {}
    for tensor in checkpoint.tensors():
        name = next((tensor.name.removeprefix(p) for p in _PREFIXES if tensor.name.startswith(p)), tensor.name)
        if name.endswith(_INNER):
            inner[name.removesuffix(_INNER)] = tensor
        elif name.endswith(_OUTER):
            outer[name.removesuffix(_OUTER)] = tensor
        else:
            raise BadRequest(f"tensor {tensor.name!r} does not belong to a LoRA pair")
    if not inner or set(inner) != set(outer):
        raise BadRequest("the adapter has no LoRA pairs, or incomplete ones")
    for matrix, a in inner.items():
        b = outer[matrix]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise CorruptModel(f"the shapes of the LoRA pair of {matrix!r} do not match")
        found = [*family.map_tensor(family.strip_prefix(b.renamed(f"{matrix}.weight")))]
        if len(found) != 1:
            raise BadRequest(f"the base model has no single tensor for the LoRA pair of {matrix!r}")
        placed = found[0]
        yield a.renamed(f"{placed.name}.lora_a")
        yield placed.renamed(f"{placed.name}.lora_b")
