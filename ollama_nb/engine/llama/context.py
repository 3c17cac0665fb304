"""Native inference: the KV cache of many sequences, decoding, and sampler chains."""

from __future__ import annotations

import ctypes
import enum
import math
import time
import weakref
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as L
import numpy as np
import numpy.typing as npt

from ollama_nb.engine.llama.model import POOLING, LlamaModel
from ollama_nb.engine.llama.native import KV_TYPES, Bytes, Floats, clear_log, last_error, ran_out_of_memory
from ollama_nb.engine.messages import Adapters
from ollama_nb.errors import InsufficientMemory, LoadError

MAX_SEQUENCES = 255  # llama.cpp's 256, less the scratch sequence for batch padding
OUTPUT_BLOCK = 8  # rows; the number of output rows is a multiple of this


class DecodeStatus(enum.IntEnum):
    """Result of a decode. ``CACHE_FULL``: the KV cache has no cells for the batch."""

    DONE = 0
    CACHE_FULL = 1
    ABORTED = 2
    INVALID = -1
    FAILED = -2


_strlen = ctypes.CDLL(None).strlen
_address_of_logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("llama_get_logits", L._lib))
_address_of_pooled = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
    ("llama_get_embeddings_seq", L._lib)
)


class Context:
    """A KV cache of ``cells`` cells for ``n_seq`` sequences. Raises LoadError.

    The caller fills the batch arrays ``tokens``, ``positions``, ``sequences`` and ``outputs`` (``n_batch`` rows) before
    ``decode``. A batch may have ``n_outputs`` rows with logits: one per sequence, and some for drafts and padding. The
    additional sequence ``scratch`` is for padding. With ``pooling`` it is a context for embeddings. ``abort`` may be
    called from any thread.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        cells: int,
        n_seq: int,
        n_batch: int,
        n_ubatch: int,
        n_threads: int,
        flash_attention: bool | None = None,
        kv_type: str = "f16",
        pooling: str | None = None,
    ) -> None:
        self.model, self.n_seq, self.n_batch = model, n_seq, n_batch
        self.pooled_width = max(1, model.n_scores) if pooling == "rank" else model.n_embd
        self.scratch = n_seq
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = cells, n_batch, n_ubatch
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = -1 if flash_attention is None else int(flash_attention)
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.kv_unified, params.no_perf = True, True
        self._set_outputs(params, pooling)
        self._set_abort(params)
        clear_log()
        self.handle = L.llama_init_from_model(model.handle, params)
        if not self.handle:
            kind = InsufficientMemory if ran_out_of_memory() else LoadError
            raise kind(f"cannot create a context: {last_error('not enough memory?')}")
        self.close = weakref.finalize(self, L.llama_free, self.handle)
        self.memory = L.llama_get_memory(self.handle)
        self._sharing: set[int] = set()
        """Sequences that may share cells with another one."""
        self._has_moved = False
        """Whether the next decode must first rotate the keys of cells that were moved."""
        self.can_shift = bool(self.memory and L.llama_memory_can_shift(self.memory))
        self._make_batch(n_batch)
        self._logits: Floats = np.empty((0, 0), np.float32)
        self._logits_at = 0
        self.adapters: Adapters = ()
        """Those of the next decode; see ``set_adapters``."""

    def _set_outputs(self, params: Any, pooling: str | None) -> None:
        """Set how many rows of a batch may have logits, or how they are pooled."""
        generates = pooling is None and not self.model.recurrent
        params.n_seq_max = self.n_seq + generates
        # llama.cpp reserves an output row for every sequence, including the scratch one.
        blocks = max(2, -(-(self.n_seq + 1) // OUTPUT_BLOCK))
        self.n_outputs = blocks * OUTPUT_BLOCK if generates else self.n_seq
        if pooling is None:
            params.n_outputs_max = self.n_outputs  # else space for n_batch rows is reserved: 300 MB for 150k tokens
        else:
            params.embeddings = True
            params.pooling_type = {name: number for number, name in POOLING.items()}[pooling]

    def _set_abort(self, params: Any) -> None:
        self._abort = ctypes.create_string_buffer(2)
        # The abort callback is libc's strlen on this buffer: no Python runs in a decode, and any thread may set it.
        self._is_aborted = ctypes.cast(_strlen, L.ggml_abort_callback)
        params.abort_callback = self._is_aborted
        params.abort_callback_data = ctypes.addressof(self._abort)

    def _make_batch(self, size: int) -> None:
        """Allocate the batch arrays; the native batch points at them."""
        self.tokens, self.positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.sequences, self.outputs = np.zeros(size, np.int32), np.zeros(size, np.int8)
        self._one = np.ones(size, np.int32)
        self._pointers = (self.sequences.ctypes.data + 4 * np.arange(size)).astype(np.uintp)
        self._batch = batch = L.llama_batch()
        for name, array in (
            ("token", self.tokens),
            ("pos", self.positions),
            ("n_seq_id", self._one),
            ("seq_id", self._pointers),
            ("logits", self.outputs),
        ):
            setattr(batch, name, ctypes.cast(array.ctypes.data, type(getattr(batch, name))))

    def set_adapters(self, adapters: Adapters) -> bool:
        """Use exactly these LoRA adapters from the next decode on. Raises BadRequest.

        Return whether they have changed; llama.cpp then reserves its buffers again, which takes some milliseconds.
        """
        if adapters == self.adapters:
            return False
        handles = (L.llama_adapter_lora_p_ctypes * len(adapters))(*[self.model.adapter(one.path) for one in adapters])
        scales = (ctypes.c_float * len(adapters))(*[one.scale for one in adapters])
        L.llama_set_adapters_lora(self.handle, handles, len(adapters), scales)
        self.adapters = adapters
        return True

    def decode(self, count: int) -> DecodeStatus:
        """Decode the first ``count`` rows of the batch arrays. Unless it is DONE, the caller must cut these rows.

        The first decode after a shift cannot be aborted.
        """
        if not 0 < count <= self.n_batch:
            raise ValueError(
                f"a batch of {count} rows, but n_batch is {self.n_batch}"
            )  # llama.cpp would abort the process
        self._batch.n_tokens = count
        status = self._decode_without_abort() if self._has_moved else L.llama_decode(self.handle, self._batch)
        return DecodeStatus.DONE if status == 0 else DecodeStatus(max(status, -2))

    def _decode_without_abort(self) -> int:
        """Decode after a shift: keys are rotated in place, so that an abort would leave some to be rotated twice."""
        L.llama_set_abort_callback(self.handle, L.ggml_abort_callback(), None)
        status: int = L.llama_decode(self.handle, self._batch)
        L.llama_set_abort_callback(self.handle, self._is_aborted, ctypes.addressof(self._abort))
        self._has_moved = False
        return status

    def time_one(self) -> float:
        """Return the seconds of a decode of one row, inf if it was aborted. The KV cache is empty afterwards."""
        self.tokens[0], self.positions[0], self.sequences[0], self.outputs[0] = max(self.model.bos, 0), 0, 0, 1
        started = time.perf_counter()
        status = self.decode(1)
        seconds = time.perf_counter() - started
        self.clear()
        return math.inf if status is DecodeStatus.ABORTED else seconds

    def logits(self) -> Floats:
        """Return a writable view of the logits [n_outputs, n_vocab], in batch order, valid until the next decode."""
        address = _address_of_logits(self.handle)
        if address != self._logits_at:
            self._logits = _floats(address, self.n_outputs, self.model.n_vocab)
            self._logits_at = address
        return self._logits

    def pooled(self, seq: int) -> Floats:
        """Return a copy of the pooled embedding [pooled_width] of a sequence, or of its scores with rank pooling."""
        address = _address_of_pooled(self.handle, seq)
        if not address:
            raise LoadError("the model returned no embedding")
        return _floats(address, 1, self.pooled_width).reshape(-1).copy()

    def cut(self, seq: int, start: int) -> bool:
        """Remove a sequence from position ``start`` on. False: it cannot be cut and was removed completely."""
        if not start:
            self._sharing.discard(seq)
        if not self.memory or L.llama_memory_seq_rm(self.memory, seq, start, -1):
            return True
        L.llama_memory_seq_rm(self.memory, seq, -1, -1)
        return False

    def share(self, source: int, target: int, count: int) -> bool:
        """Make ``target`` (empty) share the first ``count`` cells of ``source``; nothing is copied.

        False: ``source`` does not have them any more, and ``target`` is empty.
        """
        L.llama_memory_seq_cp(self.memory, source, target, 0, count)
        if self.extent(target) == (0, count - 1):
            self._sharing |= {source, target}
            return True
        L.llama_memory_seq_rm(self.memory, target, -1, -1)
        return False

    def fill(self, row: int, seq: int, start: int, tokens: Sequence[int], *, output: bool) -> int:
        """Write tokens of a sequence into the batch arrays from ``row`` on; return the next free row.

        ``start``: position of the first token; ``output``: the last one gets logits.
        """
        end = row + len(tokens)
        self.tokens[row:end], self.positions[row:end] = tokens, np.arange(start, start + len(tokens))
        self.sequences[row:end], self.outputs[row:end] = seq, 0
        self.outputs[end - 1] = output
        return end

    def pad(self, count: int, rows: int) -> None:
        """Pad the batch from ``count`` to ``rows`` rows with the scratch sequence, which is to be cut after the decode.

        Padding rows get logits too: the output matrix is the largest and gains most from full blocks of rows.
        """
        self.tokens[count:rows], self.positions[count:rows] = max(self.model.bos, 0), np.arange(rows - count)
        self.sequences[count:rows], self.outputs[count:rows] = self.scratch, 1

    def shift(self, seq: int, start: int, count: int) -> bool:
        """Remove positions [start, start + count) and move the later ones down. False: the sequence was removed."""
        if seq in self._sharing:  # a shared cell would move for every sequence: make copies first
            self._sharing.remove(seq)
            if not self.restore(seq, self.save(seq)):
                return False
        if not L.llama_memory_seq_rm(self.memory, seq, start, start + count):
            L.llama_memory_seq_rm(self.memory, seq, -1, -1)
            return False
        L.llama_memory_seq_add(self.memory, seq, start + count, -1, -count)
        self._has_moved = True
        return True

    def state_size(self, seq: int) -> int:
        """Return the bytes of ``save``."""
        return int(L.llama_state_seq_get_size(self.handle, seq))

    def save(self, seq: int) -> Bytes:
        """Return a copy of the state of a sequence; empty if it has none."""
        state = np.empty(self.state_size(seq), np.uint8)
        count = L.llama_state_seq_get_data(self.handle, _octets(state), len(state), seq)
        return state[:count]

    def restore(self, seq: int, state: Bytes) -> bool:
        """Replace a sequence by a state from ``save`` of the same build, model and cache types.

        False: it does not fit or is not such a state, and the sequence is empty.
        """
        return bool(L.llama_state_seq_set_data(self.handle, _octets(state), len(state), seq) == len(state))

    def clear(self) -> None:
        """Remove all sequences."""
        self._sharing.clear()
        if self.memory:
            L.llama_memory_clear(self.memory, False)

    def extent(self, seq: int) -> tuple[int, int]:
        """Return the first and the last position of a sequence in the KV cache, (-1, -1) if it is empty."""
        low = L.llama_memory_seq_pos_min(self.memory, seq)
        return int(low), int(L.llama_memory_seq_pos_max(self.memory, seq))

    def set_threads(self, count: int) -> None:
        L.llama_set_n_threads(self.handle, count, count)

    def abort(self) -> None:
        """Stop the current decode, or the next one, at its next operation. Any thread."""
        self._abort[0] = b"\1"

    def rearm(self) -> None:
        """Clear an abort."""
        self._abort[0] = b"\0"


_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
_STEPS: dict[str, Any] = {
    "top_k": L.llama_sampler_init_top_k,
    "typical": lambda p: L.llama_sampler_init_typical(p, 1),
    "top_p": lambda p: L.llama_sampler_init_top_p(p, 1),
    "min_p": lambda p: L.llama_sampler_init_min_p(p, 1),
    "temperature": L.llama_sampler_init_temp,
    "dist": L.llama_sampler_init_dist,
}


class SamplerChain:
    """A native sampler chain of (name, value) steps, of which the last is ``dist`` with its seed."""

    _scratch = np.empty(4096, _CANDIDATE)  # shared by all: one thread samples, one row at a time

    def __init__(self, steps: Sequence[tuple[str, float]]) -> None:
        self._handle = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
        self.close = weakref.finalize(self, L.llama_sampler_free, self._handle)
        for name, value in steps:
            L.llama_sampler_chain_add(self._handle, _STEPS[name](value))
        self._array: Any = L.llama_token_data_array()
        self._reference = ctypes.byref(self._array)

    def draw(self, ids: npt.NDArray[np.intp], logits: Floats) -> int:
        """Draw one of the candidates (at least one; their order matters for a seed) by their logits."""
        count = len(ids)
        if count > len(SamplerChain._scratch):
            SamplerChain._scratch = np.empty(2 ** math.ceil(math.log2(count)), _CANDIDATE)
        scratch, array = SamplerChain._scratch, self._array
        scratch["id"][:count] = ids
        scratch["logit"][:count] = logits
        array.data = ctypes.cast(scratch.ctypes.data, L.llama_token_data_p)
        array.size, array.selected, array.sorted = count, -1, False
        L.llama_sampler_apply(self._handle, self._reference)
        return int(array.data[array.selected].id)


def _floats(address: int, rows: int, width: int) -> Floats:
    native = (ctypes.c_float * (rows * width)).from_address(address)
    return np.frombuffer(memoryview(native).cast("B"), np.float32).reshape(rows, width)


def _octets(data: Bytes) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
