"""The only door to llama.cpp: its low-level C API by ctypes (never ``llama_cpp.Llama``), in three native things.

``Model`` (weights and vocabulary), ``Context`` (memory of many sequences, one decode at a time), ``Chain`` (a sampler
chain). Each frees its native half once, by ``close`` or when collected. What would abort the process is checked here
or one room up: batches never exceed ``n_batch``, memory is unified, nothing is sampled from an empty array.
"""

from ollama_nb.engine.llama.chain import Chain
from ollama_nb.engine.llama.context import MAX_SEQUENCES, Context, Decoded
from ollama_nb.engine.llama.model import Model
from ollama_nb.engine.llama.native import BUILD, KV_TYPES, Bytes, Floats

__all__ = [
    "BUILD",
    "KV_TYPES",
    "MAX_SEQUENCES",
    "Bytes",
    "Chain",
    "Context",
    "Decoded",
    "Floats",
    "Model",
]
