"""The only door to llama.cpp: its low-level C API by ctypes (never ``llama_cpp.Llama``), in three native things.

``Model`` (weights and vocabulary), ``Context`` (memory of many sequences, one decode at a time), ``Chain`` (a sampler
chain). Each frees its native half once, by ``close`` or when collected. What would abort the process is checked here
or one room up: batches never exceed ``n_batch``, memory is unified, nothing is sampled from an empty array.
"""

from __future__ import annotations

import ctypes
import enum
import math
import re
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as L
import numpy as np
import numpy.typing as npt

from ollama_nb.errors import LoadError

PINNED = "0.3.36"
"""The llama-cpp-python whose native structures this file was written for."""
BUILD = f"llama-cpp-python {llama_cpp.__version__}"
MAX_SEQUENCES = 255
"""llama.cpp's 256, less the one for padding rows."""
OUTPUT_BLOCK = 8
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""KV cache type → ggml type number."""
POOLING = {-1: "none", 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_KV_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5}
_CONTROL, _USER_DEFINED = 1 << 3, 1 << 4  # of enum llama_token_attr
_PIECE_BYTES = 512

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]

_log: deque[str] = deque(maxlen=400)


@L.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(level: int, text: bytes, _: object) -> None:
    """Nothing goes to stderr; the last lines stay, so that a failed load can be explained."""
    _log.append(f"{level}{text.decode('utf-8', 'replace')}")


class _Backend:
    """llama.cpp as a whole, started once for the process."""

    ready = False

    @classmethod
    def start(cls) -> None:
        """Raises LoadError when the installed llama-cpp-python is not the pinned one."""
        if cls.ready:
            return
        if llama_cpp.__version__ != PINNED:
            raise LoadError(
                f"llama-cpp-python {llama_cpp.__version__} is installed, this release needs exactly {PINNED}: "
                f"run `pip install llama-cpp-python=={PINNED}`"
            )
        L.llama_log_set(_keep_log, None)
        L.llama_backend_init()
        cls.ready = True


def _complaint(default: str) -> str:
    """The last error that llama.cpp logged, without the names of its functions."""
    lines = [line[1:].strip() for line in _log if line[0] in "34"]
    for line in reversed(lines):
        text = re.sub(r"^(\w+: )+", "", line.replace("error loading model: ", ""))
        if text and not text.startswith("failed to load model"):
            return text
    return default


class Model:
    """A loaded GGUF, or only its vocabulary. Raises LoadError with llama.cpp's own reason."""

    def __init__(
        self,
        path: str,
        *,
        vocab_only: bool = False,
        n_gpu_layers: int = -1,
        main_gpu: int | None = None,
        use_mmap: bool = True,
    ) -> None:
        _Backend.start()
        if not Path(path).is_file():
            raise LoadError(f"cannot load the model: no such file: {path}")
        _log.clear()
        params = L.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = max(-1, min(n_gpu_layers, 10_000))
        params.load_mode = int(use_mmap)
        if main_gpu is not None:
            params.split_mode, params.main_gpu = L.LLAMA_SPLIT_MODE_NONE, max(0, main_gpu)
        self.handle = L.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise LoadError(f"cannot load the model: {_complaint('llama.cpp gave no reason')}")
        self.close = weakref.finalize(self, L.llama_model_free, self.handle)
        self.vocab = L.llama_model_get_vocab(self.handle)
        self.vocab_only = vocab_only
        self._read_vocabulary()
        self._read_facts()

    def _read_vocabulary(self) -> None:
        vocab = self.vocab
        self.n_vocab = int(L.llama_vocab_n_tokens(vocab))
        self._visible: list[bytes | None] = [None] * self.n_vocab
        self.bos, self.eos = int(L.llama_vocab_bos(vocab)), int(L.llama_vocab_eos(vocab))
        self.add_bos = bool(L.llama_vocab_get_add_bos(vocab))
        self.add_eos = bool(L.llama_vocab_get_add_eos(vocab))
        self.bos_text = self.raw_piece(self.bos).decode("utf-8", "replace")
        self.eos_text = self.raw_piece(self.eos).decode("utf-8", "replace")
        is_eog = L.llama_vocab_is_eog
        counted = range(0 if self.vocab_only else self.n_vocab)
        self.eog = frozenset(token for token in counted if is_eog(vocab, token))
        """Tokens that end a generation (not looked up where nothing is generated: 50 ms for 150,000 tokens)."""
        first = self.tokenize("a", add_special=False, parse_special=False)[:1]
        self._space_first = bool(first) and self.raw_piece(first[0])[:1] == b" "

    def _read_facts(self) -> None:
        self.architecture = self.meta("general.architecture")
        self.n_ctx_train = int(L.llama_model_n_ctx_train(self.handle))
        self.n_embd = int(L.llama_model_n_embd_out(self.handle))
        self.n_layer = int(L.llama_model_n_layer(self.handle))
        self.n_params = int(L.llama_model_n_params(self.handle))
        self.size = int(L.llama_model_size(self.handle))
        self.recurrent = bool(L.llama_model_is_recurrent(self.handle) or L.llama_model_is_hybrid(self.handle))
        pooling = self.meta(f"{self.architecture}.pooling_type")
        self.pooling = POOLING.get(int(pooling), "none") if pooling.isdigit() else "none"
        decodes = bool(L.llama_model_has_decoder(self.handle))
        self.n_scores = int(L.llama_model_n_cls_out(self.handle))
        """How many numbers a model with rank pooling gives for a pair."""
        self.embeds_only = bool(pooling) or not decodes
        """An embedding model: it has a pooling type, or nothing that could generate."""
        self.two_part = decodes and bool(L.llama_model_has_encoder(self.handle))
        """An encoder in front of a decoder, such as T5."""

    def meta(self, key: str) -> str:
        """A metadata value as text; empty when the file has none."""
        buffer = ctypes.create_string_buffer(1024)
        size = L.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    @property
    def between(self) -> list[int]:
        """What stands between the two texts of a pair."""
        sep = [int(L.llama_vocab_sep(self.vocab))] if L.llama_vocab_get_add_sep(self.vocab) else []
        return ([self.eos] if self.add_eos else []) + sep

    @property
    def rank_template(self) -> str:
        """How a model that ranks wants its pairs written, with ``{query}`` and ``{document}``; empty: as two texts."""
        text = L.llama_model_chat_template(self.handle, b"rerank")
        return text.decode("utf-8", "replace") if text else ""

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokens of a text; ``add_special`` adds what the tokenizer adds by itself (BOS, EOS, CLS, SEP)."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        tokens = np.empty(room, np.int32)
        address = tokens.ctypes.data_as(L.llama_token_p)
        count = L.llama_tokenize(self.vocab, data, len(data), address, room, add_special, parse_special)
        if count < 0:
            tokens = np.empty(-count, np.int32)
            address = tokens.ctypes.data_as(L.llama_token_p)
            count = L.llama_tokenize(self.vocab, data, len(data), address, -count, add_special, parse_special)
        result: list[int] = tokens[:count].tolist()
        return result

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The text that gives these tokens again: special tokens as their text, no space that the tokenizer added."""
        pieces = [self.raw_piece(token) for token in tokens]
        if self._space_first:
            for at, token in enumerate(tokens):
                if token != self.bos:
                    pieces[at] = pieces[at].removeprefix(b" ")
                    break
        return b"".join(pieces)

    def piece(self, token: int) -> bytes:
        """The bytes that a reader sees: none for control tokens."""
        piece = self._visible[token]
        if piece is None:
            piece = self._visible[token] = self._render(token, special=False)
        return piece

    def raw_piece(self, token: int) -> bytes:
        """The token's own bytes, control tokens too; none for an id that is no token."""
        return self._render(token, special=True) if 0 <= token < self.n_vocab else b""

    def pieces(self) -> list[bytes]:
        """The raw bytes of all tokens."""
        return [self._render(token, special=True) for token in range(self.n_vocab)]

    def is_control(self, token: int) -> bool:
        """A token that is no text: hidden from readers."""
        return bool(L.llama_vocab_get_attr(self.vocab, token) & _CONTROL)

    def is_markup(self, token: int) -> bool:
        """A control token, or one that the model's maker added in the shape of one (``<tool_call>``)."""
        attributes = L.llama_vocab_get_attr(self.vocab, token)
        if attributes & _USER_DEFINED:
            piece = self.raw_piece(token)
            return piece.startswith(b"<") and piece.endswith(b">")
        return bool(attributes & _CONTROL)

    @property
    def native_tokenizer(self) -> tuple[int, int]:
        """Addresses of the vocabulary and of the function that tokenizes with it."""
        function = ctypes.cast(L._lib.llama_tokenize, ctypes.c_void_p).value
        return int(self.vocab), function or 0

    def kv_bytes(self, cells: int, kv_type: str) -> int:
        """Estimated size of the key and value memory for so many cells."""
        plain = int(L.llama_model_n_embd(self.handle)) // max(1, int(L.llama_model_n_head(self.handle)))
        width = int(L.llama_model_n_head_kv(self.handle)) * (
            self._whole("attention.key_length", plain) + self._whole("attention.value_length", plain)
        )
        return int(cells * self.n_layer * width * _KV_BITS[kv_type] / 8)

    def _whole(self, key: str, default: int) -> int:
        """A whole number of the architecture's metadata (some are lists, one for each layer: then the default)."""
        text = self.meta(f"{self.architecture}.{key}")
        return int(text) if text.isdigit() else default

    def offloaded(self) -> float:
        """Share of the layers that llama.cpp put on a GPU, 0 to 1, as its log said."""
        found = re.findall(r"offloaded (\d+)/(\d+) layers", "".join(_log))
        return int(found[-1][0]) / max(1, int(found[-1][1])) if found else 0.0

    def _render(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        count = L.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = L.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
        return buffer.raw[:count]


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
        adapters: Sequence[str] = (),
    ) -> None:
        self.model, self.n_seq, self.n_batch = model, n_seq, n_batch
        self.pooled_width = max(1, model.n_scores) if pooling == "rank" else model.n_embd
        self.scratch = n_seq
        generates = pooling is None and not model.recurrent
        # llama.cpp makes room for a row of every sequence, the scratch one too, whatever a step asks for.
        self.n_outputs = max(2 * OUTPUT_BLOCK, -(-(n_seq + 1) // OUTPUT_BLOCK) * OUTPUT_BLOCK) if generates else n_seq
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = cells, n_batch, n_ubatch
        params.n_seq_max = n_seq + generates
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = -1 if flash_attention is None else int(flash_attention)
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.kv_unified, params.no_perf = True, True
        if pooling is None:
            params.n_outputs_max = self.n_outputs  # else n_batch rows of logits have room: 300 MB for 150k words
        else:
            params.embeddings = True
            params.pooling_type = {name: number for number, name in POOLING.items()}[pooling]
        self._abort = ctypes.create_string_buffer(2)
        # strlen of this buffer is the abort callback: no Python runs within a decode, and any thread may set it.
        self._is_aborted = ctypes.cast(_strlen, L.ggml_abort_callback)
        params.abort_callback = self._is_aborted
        params.abort_callback_data = ctypes.addressof(self._abort)
        _log.clear()
        self.handle = L.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise LoadError(f"cannot create a context: {_complaint('not enough memory?')}")
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
        self._adapt(adapters)

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

    def _adapt(self, paths: Sequence[str]) -> None:
        if not paths:
            return
        handles = (L.llama_adapter_lora_p_ctypes * len(paths))()
        for at, path in enumerate(paths):
            handles[at] = L.llama_adapter_lora_init(self.model.handle, path.encode())
            if not handles[at]:
                raise LoadError(f"cannot load the adapter {Path(path).name}: {_complaint('it fits another model?')}")
        scales = (ctypes.c_float * len(paths))(*[1.0] * len(paths))
        if L.llama_set_adapters_lora(self.handle, handles, len(paths), scales):
            raise LoadError("cannot apply the adapters to this model")

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


_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
_STEPS: dict[str, Any] = {
    "top_k": L.llama_sampler_init_top_k,
    "typical": lambda p: L.llama_sampler_init_typical(p, 1),
    "top_p": lambda p: L.llama_sampler_init_top_p(p, 1),
    "min_p": lambda p: L.llama_sampler_init_min_p(p, 1),
    "temperature": L.llama_sampler_init_temp,
    "dist": L.llama_sampler_init_dist,
}


def _octets(data: Bytes) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


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
