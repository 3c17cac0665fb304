"""Small random LoRA adapters for a GGUF model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

RANK = 4
_CHANGED = "attn_q.weight", "attn_v.weight", "ffn_up.weight"


def random_lora(base: Path, path: Path, seed: int, *, strength: float = 0.15, architecture: str = "llama") -> Path:
    """Changes queries, values and feed-forward of every layer, enough to make it say something else."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for tensor in GGUFReader(base).tensors:
        if tensor.name.endswith(_CHANGED):
            n_in, n_out = (int(size) for size in tensor.shape)
            for half, shape in (("a", (RANK, n_in)), ("b", (n_out, RANK))):
                values = rng.normal(0.0, strength, shape).astype(np.float32)
                writer.add_tensor(f"{tensor.name}.lora_{half}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
