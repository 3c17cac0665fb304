"""A native sampler chain."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as L
import numpy as np
import numpy.typing as npt

from ollama_nb.engine.llama.native import Floats

_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
_STEPS: dict[str, Any] = {
    "top_k": L.llama_sampler_init_top_k,
    "typical": lambda p: L.llama_sampler_init_typical(p, 1),
    "top_p": lambda p: L.llama_sampler_init_top_p(p, 1),
    "min_p": lambda p: L.llama_sampler_init_min_p(p, 1),
    "temperature": L.llama_sampler_init_temp,
    "dist": L.llama_sampler_init_dist,
}


class Chain:
    """A native sampler chain of (name, value) steps, the last of them ``dist`` with its seed."""

    _scratch = np.empty(4096, _CANDIDATE)  # shared: one thread samples, one row at a time

    def __init__(self, steps: Sequence[tuple[str, float]]) -> None:
        self._handle = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
        self.close = weakref.finalize(self, L.llama_sampler_free, self._handle)
        for name, value in steps:
            L.llama_sampler_chain_add(self._handle, _STEPS[name](value))
        self._array: Any = L.llama_token_data_array()
        self._reference = ctypes.byref(self._array)

    def draw(self, ids: npt.NDArray[np.intp], logits: Floats) -> int:
        """One token of the candidates (same length, at least one; their order matters for the seed)."""
        count = len(ids)
        if count > len(Chain._scratch):
            Chain._scratch = np.empty(2 ** math.ceil(math.log2(count)), _CANDIDATE)
        scratch, array = Chain._scratch, self._array
        scratch["id"][:count] = ids
        scratch["logit"][:count] = logits
        array.data = ctypes.cast(scratch.ctypes.data, L.llama_token_data_p)
        array.size, array.selected, array.sorted = count, -1, False
        L.llama_sampler_apply(self._handle, self._reference)
        return int(array.data[array.selected].id)
