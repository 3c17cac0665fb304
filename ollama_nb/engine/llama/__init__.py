"""The only package that imports llama.cpp: its C API through ctypes, never ``llama_cpp.Llama``.

``LlamaModel``: weights and vocabulary. ``Context``: the KV cache of many sequences, and decoding. ``SamplerChain``: a
native sampler chain. Each frees its native half once, by ``close`` or when it is collected.

Arguments that would abort the process are checked here or by the callers: a batch never exceeds ``n_batch``, the KV
cache is unified, and nothing is sampled from an empty array.
"""

from ollama_nb.engine.llama.context import MAX_SEQUENCES, Context, DecodeStatus, SamplerChain
from ollama_nb.engine.llama.model import LlamaModel
from ollama_nb.engine.llama.native import BUILD, KV_TYPES, Bytes, Floats

__all__ = [
    "BUILD",
    "KV_TYPES",
    "MAX_SEQUENCES",
    "Bytes",
    "Context",
    "DecodeStatus",
    "Floats",
    "LlamaModel",
    "SamplerChain",
]
