"""A checkpoint, or a LoRA adapter, to one GGUF file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from ollama_nb.store.convert.checkpoint import Checkpoint
from ollama_nb.store.convert.families import family_of
from ollama_nb.store.convert.family import Family, stored_as
from ollama_nb.store.convert.safetensors import Array, Tensor
from ollama_nb.store.convert.subwords import read_vocabulary
from ollama_nb.store.convert.vocabulary import rows_of

Report = Callable[[int, int], None]
"""``report(bytes written, bytes in all)``."""

TEXT_ONLY = (
    "warning: only the text model was converted: pictures and sound need a projector as GGUF (FROM ./mmproj.gguf)"
)

OUTPUTS = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
"""The types that a conversion itself can write; others are made from them by quantising."""


def convert_model(folder: Path, target: Path, output: str, report: Report) -> tuple[str, ...]:
    """Write the checkpoint in ``folder`` to ``target``; ``output`` is one of OUTPUTS. Returns notes for the user.

    Raises BadRequest for what is not supported, CorruptModel for what is broken.
    """
    checkpoint = Checkpoint(folder)
    kind, file_type = OUTPUTS[output]
    family = family_of(checkpoint.architecture)(checkpoint.config)
    out = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[family.arch])
    try:
        out.add_type("model")
        family.describe(out)
        out.add_file_type(file_type)
        out.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_vocabulary(family, checkpoint, out)
        write_tensors(out, family.tensors(checkpoint.tensors()), kind, report)
    finally:
        out.close()
    return (TEXT_ONLY,) if family.text_only else ()


def _write_vocabulary(family: Family, checkpoint: Checkpoint, out: gguf.GGUFWriter) -> None:
    vocabulary = read_vocabulary(checkpoint)
    rows = rows_of(checkpoint)
    vocabulary.fit(rows)
    vocabulary.write(out, checkpoint)
    family.tune(out, checkpoint)


def write_tensors(
    out: gguf.GGUFWriter, tensors: Iterator[Tensor], wanted: GGMLQuantizationType, report: Report
) -> None:
    """Write header and tensors. One tensor at a time is in memory."""
    planned = [(tensor, stored_as(tensor, wanted)) for tensor in tensors]
    for tensor, kind in planned:
        size = tensor.elements * (4 if kind is GGMLQuantizationType.F32 else 2)
        out.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    done, total = 0, sum(info.nbytes for info in out.tensors[0].values())
    for tensor, kind in planned:
        data = _encoded(tensor, kind)
        out.write_tensor_data(data)
        done += data.nbytes
        report(done, total)


def _encoded(tensor: Tensor, kind: GGMLQuantizationType) -> Array:
    # A number beyond float16 becomes infinite, as in every converter; numpy need not warn of it.
    with np.errstate(over="ignore"):
        encoded: Array = gguf.quants.quantize(np.ascontiguousarray(tensor.load()), kind)
    return encoded
