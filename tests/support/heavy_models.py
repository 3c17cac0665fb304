"""A model of random weights that reads slowly enough to be caught in the middle of a prompt."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models import Shape, make
from gguf import GGMLQuantizationType, LlamaFileType

N_VOCAB, CONTEXT = 2048, 8192


def heavy(path: Path) -> Path:
    """Twenty-five million parameters, 4 bits, a context of 8,192: some 5 s of reading for a full one."""
    make(Shape("llama", 8, 512, 1408, 8, 4, CONTEXT, N_VOCAB, GGMLQuantizationType.Q4_0,
               LlamaFileType.MOSTLY_Q4_0), path)  # fmt: skip
    return path
