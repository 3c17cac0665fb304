"""Memory of many sequences, and the decodes that fill it."""

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

from ollama_nb.engine.adapters import Adapters
from ollama_nb.engine.llama.model import POOLING, Model
from ollama_nb.engine.llama.native import KV_TYPES, Bytes, Floats, complaint, forget_log
from ollama_nb.errors import LoadError

MAX_SEQUENCES = 255
"""llama.cpp's 256, less the one for padding rows."""
OUTPUT_BLOCK = 8


class Decoded(enum.IntEnum):
    """What became of a decode."""

    DONE = 0
    NO_ROOM = 1
    ABORTED = 2
    INVALID = -1
    FAILED = -2


_strlen = ctypes.CDLL(None).strlen
_address_of_logits = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("llama_get_logits", L._lib))
_address_of_pooled = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
    ("llama_get_embeddings_seq", L._lib)
)


class Context:
    """Memory for ``n_seq`` sequences in ``cells`` cells, and the batch arrays ``tokens``, ``positions``,
    ``sequences``, ``outputs`` (n_batch each), which the caller fills before ``decode``.

    Beyond the served sequences there is one more, ``scratch``, for the padding rows of a step.
    A step may have ``n_outputs`` rows with logits: one for each sequence, and some for drafts and padding.
    ``pooling`` makes it a context for embeddings. ``abort`` may be called from any thread. Raises LoadError.
    """

    def __init__(
        self,
        model: Model,
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
        forget_log()
        self.handle = L.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise LoadError(f"cannot create a context: {complaint('not enough memory?')}")
        self.close = weakref.finalize(self, L.llama_free, self.handle)
        self.memory = L.llama_get_memory(self.handle)
        self._entangled: set[int] = set()
        """Sequences that may have cells in common with another."""
        self._moving = False
        """The next decode begins by turning the keys of cells that were moved."""
        self.can_shift = bool(self.memory and L.llama_memory_can_shift(self.memory))
        self._make_batch(n_batch)
        self._logits: Floats = np.empty((0, 0), np.float32)
        self._logits_at = 0
        self.adapters: Adapters = ()
        """Those that decodes have; see ``use``."""

    def _set_outputs(self, params: Any, pooling: str | None) -> None:
        """How many rows of a step may have logits, or how they are pooled."""
        generates = pooling is None and not self.model.recurrent
        params.n_seq_max = self.n_seq + generates
        # llama.cpp makes room for a row of every sequence, the scratch one too, whatever a step asks for.
        blocks = max(2, -(-(self.n_seq + 1) // OUTPUT_BLOCK))
        self.n_outputs = blocks * OUTPUT_BLOCK if generates else self.n_seq
        if pooling is None:
            params.n_outputs_max = self.n_outputs  # else n_batch rows of logits have room: 300 MB for 150k words
        else:
            params.embeddings = True
            params.pooling_type = {name: number for number, name in POOLING.items()}[pooling]

    def _set_abort(self, params: Any) -> None:
        self._abort = ctypes.create_string_buffer(2)
        # strlen of this buffer is the abort callback: no Python runs within a decode, and any thread may set it.
        self._is_aborted = ctypes.cast(_strlen, L.ggml_abort_callback)
        params.abort_callback = self._is_aborted
        params.abort_callback_data = ctypes.addressof(self._abort)

    def _make_batch(self, size: int) -> None:
        """Our own arrays; the native batch only points at them."""
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

    def use(self, adapters: Adapters) -> bool:
        """Apply these LoRA adapters and no others from the next decode on. Raises BadRequest.

        True: they are not those in use; llama.cpp then lays out its memory anew, some milliseconds.
        """
        if adapters == self.adapters:
            return False
        handles = (L.llama_adapter_lora_p_ctypes * len(adapters))(*[self.model.adapter(one.path) for one in adapters])
        scales = (ctypes.c_float * len(adapters))(*[one.scale for one in adapters])
        L.llama_set_adapters_lora(self.handle, handles, len(adapters), scales)
        self.adapters = adapters
        return True

    def decode(self, count: int) -> Decoded:
        """Read the first ``count`` rows of the batch arrays. After ABORTED or FAILED the caller cuts what it sent.

        A decode after a shift runs to its end, whatever ``abort`` says.
        """
        if not 0 < count <= self.n_batch:
            raise ValueError(f"batch of {count} rows, {self.n_batch} at most")  # llama.cpp would abort the process
        self._batch.n_tokens = count
        status = self._decode_whole() if self._moving else L.llama_decode(self.handle, self._batch)
        return Decoded.DONE if status == 0 else Decoded(max(status, -2))

    def _decode_whole(self) -> int:
        """Keys are turned layer by layer and in place: cut short, the next decode would turn some of them again."""
        L.llama_set_abort_callback(self.handle, L.ggml_abort_callback(), None)
        status: int = L.llama_decode(self.handle, self._batch)
        L.llama_set_abort_callback(self.handle, self._is_aborted, ctypes.addressof(self._abort))
        self._moving = False
        return status

    def time_one(self) -> float:
        """Seconds of a decode of one row, inf if it was aborted; memory is empty afterwards."""
        self.tokens[0], self.positions[0], self.sequences[0], self.outputs[0] = max(self.model.bos, 0), 0, 0, 1
        begun = time.perf_counter()
        status = self.decode(1)
        seconds = time.perf_counter() - begun
        self.clear()
        return math.inf if status is Decoded.ABORTED else seconds

    def logits(self) -> Floats:
        """Rows of logits [n_outputs, n_vocab], as ordered in the batch; ours to change, valid until the next decode."""
        address = _address_of_logits(self.handle)
        if address != self._logits_at:
            self._logits = _floats(address, self.n_outputs, self.model.n_vocab)
            self._logits_at = address
        return self._logits

    def pooled(self, seq: int) -> Floats:
        """The pooled embedding [pooled_width] of a sequence, as the model gave it (a copy); its scores with "rank"."""
        address = _address_of_pooled(self.handle, seq)
        if not address:
            raise LoadError("the model gave no embedding")
        return _floats(address, 1, self.pooled_width).reshape(-1).copy()

    def cut(self, seq: int, start: int) -> bool:
        """Forget a sequence from position ``start`` on. False: this memory keeps no single tokens, all is gone."""
        if not start:
            self._entangled.discard(seq)
        if not self.memory or L.llama_memory_seq_rm(self.memory, seq, start, -1):
            return True
        L.llama_memory_seq_rm(self.memory, seq, -1, -1)
        return False

    def share(self, source: int, target: int, count: int) -> bool:
        """Let ``target`` (empty) begin with the first ``count`` cells of ``source``, which are shared, not copied.

        False: ``source`` no longer has them all, ``target`` is empty.
        """
        L.llama_memory_seq_cp(self.memory, source, target, 0, count)
        if self.extent(target) == (0, count - 1):
            self._entangled |= {source, target}
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
        """Fill the batch from ``count`` to ``rows`` with rows of the scratch sequence; cut it after the decode.

        They ask for logits as the others do: the output matrix is the widest, and gains most from a full block.
        """
        self.tokens[count:rows], self.positions[count:rows] = max(self.model.bos, 0), np.arange(rows - count)
        self.sequences[count:rows], self.outputs[count:rows] = self.scratch, 1

    def shift(self, seq: int, start: int, count: int) -> bool:
        """Drop positions [start, start + count) and move the later ones down. False: all of the sequence is gone."""
        if seq in self._entangled:  # moving a cell moves it for all whose it is: first make copies of its own
            self._entangled.remove(seq)
            if not self.restore(seq, self.save(seq)):
                return False
        if not L.llama_memory_seq_rm(self.memory, seq, start, start + count):
            L.llama_memory_seq_rm(self.memory, seq, -1, -1)
            return False
        L.llama_memory_seq_add(self.memory, seq, start + count, -1, -count)
        self._moving = True
        return True

    def state_size(self, seq: int) -> int:
        """Bytes that ``save`` would give."""
        return int(L.llama_state_seq_get_size(self.handle, seq))

    def save(self, seq: int) -> Bytes:
        """A copy of what memory holds of a sequence; empty when there is nothing."""
        state = np.empty(self.state_size(seq), np.uint8)
        count = L.llama_state_seq_get_data(self.handle, _octets(state), len(state), seq)
        return state[:count]

    def restore(self, seq: int, state: Bytes) -> bool:
        """Replace a sequence by one that ``save`` gave under the same build, model and cache types.

        False: there is no room for it, or it is not that; the sequence is empty.
        """
        return bool(L.llama_state_seq_set_data(self.handle, _octets(state), len(state), seq) == len(state))

    def clear(self) -> None:
        """Forget everything."""
        self._entangled.clear()
        if self.memory:
            L.llama_memory_clear(self.memory, False)

    def extent(self, seq: int) -> tuple[int, int]:
        """First and last position that memory holds of a sequence; (-1, -1): none."""
        low = L.llama_memory_seq_pos_min(self.memory, seq)
        return int(low), int(L.llama_memory_seq_pos_max(self.memory, seq))

    def set_threads(self, count: int) -> None:
        L.llama_set_n_threads(self.handle, count, count)

    def abort(self) -> None:
        """Make the decode that runs now (or the next one) stop at its next operation. Any thread."""
        self._abort[0] = b"\1"

    def rearm(self) -> None:
        """Take back an abort."""
        self._abort[0] = b"\0"


def _floats(address: int, rows: int, width: int) -> Floats:
    native = (ctypes.c_float * (rows * width)).from_address(address)
    return np.frombuffer(memoryview(native).cast("B"), np.float32).reshape(rows, width)


def _octets(data: Bytes) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
