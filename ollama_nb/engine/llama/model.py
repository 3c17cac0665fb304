"""A model's weights and vocabulary."""

from __future__ import annotations

import ctypes
import re
import struct
import weakref
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as L
import numpy as np

from ollama_nb.engine.llama.native import clear_log, last_error, log_text, ran_out_of_memory, start
from ollama_nb.engine.tokenizer import BPE, MAX_UNSPLIT, PIECE, SPM, STRIPPED, Marker, TextSplitter
from ollama_nb.errors import BadRequest, InsufficientMemory, LoadError, OllamaError
from ollama_nb.store.gguf import read_gguf

POOLING = {-1: "none", 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
MAX_UNUSED_ADAPTERS = 8  # LoRA adapters that remain in memory without being used
_KV_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5}
_UNKNOWN, _CONTROL, _USER_DEFINED, _LSTRIP, _RSTRIP = 1, 1 << 3, 1 << 4, 1 << 7, 1 << 8  # of enum llama_token_attr
_PIECE_BYTES = 512


class LlamaModel:
    """A loaded GGUF file, or only its vocabulary. Raises LoadError with the reason from llama.cpp."""

    def __init__(
        self,
        path: str,
        *,
        vocab_only: bool = False,
        n_gpu_layers: int = -1,
        main_gpu: int | None = None,
        use_mmap: bool = True,
    ) -> None:
        start()
        if not Path(path).is_file():
            raise LoadError(f"cannot load the model: no such file: {path}")
        clear_log()
        params = L.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = max(-1, min(n_gpu_layers, 10_000))
        params.load_mode = int(use_mmap)
        if main_gpu is not None and L.llama_supports_gpu_offload():
            params.split_mode, params.main_gpu = L.LLAMA_SPLIT_MODE_NONE, max(0, main_gpu)
        self.handle = L.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            kind = InsufficientMemory if ran_out_of_memory() else LoadError
            raise kind(f"cannot load the model: {last_error('llama.cpp reported no reason')}")
        self.close = weakref.finalize(self, L.llama_model_free, self.handle)
        found = re.findall(r"offloaded (\d+)/(\d+) layers", log_text())
        self.offloaded = int(found[-1][0]) / max(1, int(found[-1][1])) if found else 0.0
        """Share of the layers on a GPU, 0 to 1, according to the log."""
        self.vocab = L.llama_model_get_vocab(self.handle)
        self.vocab_only = vocab_only
        self._adapters: dict[str, Any] = {}
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
        self.fill_tokens = _fill_tokens(vocab)
        """Tokens for prefix, suffix, middle, repository and file separator; empty if the model cannot fill a gap."""
        is_eog = L.llama_vocab_is_eog
        counted = range(0 if self.vocab_only else self.n_vocab)
        self.eog = frozenset(token for token in counted if is_eog(vocab, token))
        """Tokens that end a reply; empty with ``vocab_only`` (collecting them takes 50 ms for 150,000 tokens)."""
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
        """Numbers that a model with rank pooling returns for a pair."""
        self.embeds_only = bool(pooling) or not decodes
        """Whether it is an embedding model: it has a pooling type, or no decoder."""
        self.two_part = decodes and bool(L.llama_model_has_encoder(self.handle))
        """Whether it is an encoder-decoder model, such as T5."""

    def adapter(self, path: str) -> Any:
        """Return the native half of a LoRA adapter, loaded once and kept until ``free_adapters``. Raises BadRequest."""
        handle = self._adapters.pop(path, None)
        if handle is None:
            check_adapter(path, self.architecture)
            clear_log()
            handle = L.llama_adapter_lora_init(self.handle, path.encode())
            if not handle:
                reason = last_error("it does not fit this model").removeprefix("failed to apply lora adapter: ")
                raise _unusable(path, reason)
        self._adapters[path] = handle  # ordered by last use
        return handle

    def free_adapters(self, needed: Collection[str]) -> None:
        """Free the least recently used adapters beyond ``MAX_UNUSED_ADAPTERS``, except for the paths in ``needed``."""
        spare = len(self._adapters) - MAX_UNUSED_ADAPTERS
        for path in [path for path in self._adapters if path not in needed][: max(0, spare)]:
            L.llama_adapter_lora_free(self._adapters.pop(path))

    def meta(self, key: str) -> str:
        """Return a metadata value as text; empty if the file has none."""
        buffer = ctypes.create_string_buffer(1024)
        size = L.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    @property
    def pair_separator(self) -> list[int]:
        """The tokens between the two texts of a pair."""
        sep = [int(L.llama_vocab_sep(self.vocab))] if L.llama_vocab_get_add_sep(self.vocab) else []
        return ([self.eos] if self.add_eos else []) + sep

    @property
    def rank_template(self) -> str:
        """Template for a pair, with ``{query}`` and ``{document}``; empty: the two texts with a separator."""
        text = L.llama_model_chat_template(self.handle, b"rerank")
        return text.decode("utf-8", "replace") if text else ""

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raise BadRequest for a token id that this model does not have."""
        wrong = next((token for token in tokens if not 0 <= token < self.n_vocab), None)
        if wrong is not None:
            raise BadRequest(
                f"{wrong} is not a token of this model: its vocabulary has the tokens 0 to {self.n_vocab - 1}"
            )

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the tokens of a text. ``add_special`` adds the model's special tokens (BOS, EOS, CLS, SEP).

        With ``parse_special`` too, a text that begins with BOS does not get a second one.
        """
        if len(text) <= PIECE:
            return self._tokenize(self._without_bos(text, add_special and parse_special), add_special, parse_special)
        pieces = self.tokenize_pieces(text, add_special=add_special, parse_special=parse_special)
        return [token for piece in pieces for token in piece]

    def tokenize_pieces(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> Iterator[list[int]]:
        """Yield the tokens of a text piece by piece; together they are those of ``tokenize``. See ``tokenizer``.

        Raises BadRequest for a text that has too many characters in a row without a place where it can be cut.
        """
        text = self._without_bos(text, add_special and parse_special)
        if len(text) <= PIECE:
            yield self._tokenize(text, add_special, parse_special)
            return
        before, after = self.added_tokens if add_special else ([], [])
        splitter, markers = self._splitter
        head = self._tokenize(splitter.sentinel, False, False) if self.vocabulary_type == SPM else []
        yield before
        at_start, strip = True, False  # whether the text so far ends in a special token, and one with RSTRIP
        for piece in splitter.split(text):
            if self.vocabulary_type == BPE and len(piece) > MAX_UNSPLIT:
                raise BadRequest(
                    f"the text has {len(piece)} characters in a row without a space or a line break between words, "
                    f"and at most {MAX_UNSPLIT} can be tokenized: break it up"
                )
            if strip and not (piece := piece.lstrip(STRIPPED)):
                continue
            if at_start or not head:
                tokens = self._tokenize(piece, False, parse_special)
            else:
                tokens = self._tokenize(splitter.sentinel + piece, False, parse_special)[len(head) :]
            yield tokens
            marker = markers.get(tokens[-1]) if tokens else None
            if tokens or not at_start:
                at_start = marker is not None and marker.ends(piece, parse_special)
                strip = at_start and marker is not None and marker.rstrip
        yield after

    def _without_bos(self, text: str, parsed: bool) -> str:
        """Return a text without a BOS at its beginning, if it is ``parsed`` and gets one anyway."""
        return text.removeprefix(self.bos_text) if parsed and self.add_bos else text

    @cached_property
    def added_tokens(self) -> tuple[list[int], list[int]]:
        """The special tokens that ``add_special`` puts before and after a text."""
        bare, whole = self._tokenize("a", False, False), self._tokenize("a", True, False)
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        return whole[:at], whole[at + len(bare) :]

    @cached_property
    def _splitter(self) -> tuple[TextSplitter, dict[int, Marker]]:
        """How long texts are split, and the tokens that are found as a whole in a text."""
        attributes = [L.llama_vocab_get_attr(self.vocab, token) for token in range(self.n_vocab)]
        texts = self.texts()
        markers = {
            token: Marker(
                texts[token].decode("utf-8", "replace"),
                always=bool(attribute & _USER_DEFINED),
                rstrip=bool(attribute & _RSTRIP),
            )
            for token, attribute in enumerate(attributes)
            if attribute & (_UNKNOWN | _CONTROL | _USER_DEFINED)
        }
        lstrip = any(attribute & _LSTRIP for attribute in attributes)
        return TextSplitter(self.vocabulary_type, texts, lstrip=lstrip, piece=PIECE), markers

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of a text in one native call."""
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
        """Return the bytes of tokens, special ones included, without a space that the tokenizer added in front."""
        pieces = [self.raw_piece(token) for token in tokens]
        if self._space_first:
            for at, token in enumerate(tokens):
                if token != self.bos:
                    pieces[at] = pieces[at].removeprefix(b" ")
                    break
        return b"".join(pieces)

    def piece(self, token: int) -> bytes:
        """Return the visible bytes of a token: empty for control tokens."""
        piece = self._visible[token]
        if piece is None:
            piece = self._visible[token] = self._render(token, special=False)
        return piece

    def raw_piece(self, token: int) -> bytes:
        """Return the bytes of a token, including control tokens; empty for an invalid id."""
        return self._render(token, special=True) if 0 <= token < self.n_vocab else b""

    def pieces(self) -> list[bytes]:
        """Return the raw bytes of all tokens."""
        return [self._render(token, special=True) for token in range(self.n_vocab)]

    def texts(self) -> list[bytes]:
        """Return all tokens as written in the file."""
        vocab, text = self.vocab, L.llama_vocab_get_text
        return [text(vocab, token) or b"" for token in range(self.n_vocab)]

    @property
    def vocabulary_type(self) -> int:
        """llama.cpp's number of the tokenizer type."""
        return int(L.llama_vocab_type(self.vocab))

    def is_control(self, token: int) -> bool:
        """Return whether a token is a control token, which is not visible as text."""
        return bool(L.llama_vocab_get_attr(self.vocab, token) & _CONTROL)

    def is_markup(self, token: int) -> bool:
        """Return whether a token is a control token, or a user-defined one that looks like it (``<tool_call>``)."""
        attributes = L.llama_vocab_get_attr(self.vocab, token)
        if attributes & _USER_DEFINED:
            piece = self.raw_piece(token)
            return piece.startswith(b"<") and piece.endswith(b">")
        return bool(attributes & _CONTROL)

    @property
    def native_tokenizer(self) -> tuple[int, int]:
        """Addresses of the native vocabulary and of the native tokenize function."""
        function = ctypes.cast(L._lib.llama_tokenize, ctypes.c_void_p).value
        return int(self.vocab), function or 0

    def kv_bytes(self, cells: int, kv_type: str) -> int:
        """Return the estimated bytes of a KV cache of ``cells`` cells."""
        plain = int(L.llama_model_n_embd(self.handle)) // max(1, int(L.llama_model_n_head(self.handle)))
        width = int(L.llama_model_n_head_kv(self.handle)) * (
            self._integer("attention.key_length", plain) + self._integer("attention.value_length", plain)
        )
        return int(cells * self.n_layer * width * _KV_BITS[kv_type] / 8)

    def _integer(self, key: str, default: int) -> int:
        """Return an integer from the architecture's metadata; the default for lists with a value per layer."""
        text = self.meta(f"{self.architecture}.{key}")
        return int(text) if text.isdigit() else default

    def _render(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        count = L.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = L.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
        return buffer.raw[:count]


def _fill_tokens(vocab: Any) -> tuple[int, ...]:
    """The tokens that mark a gap; empty unless the vocabulary has the three that are always needed."""
    needed = L.llama_vocab_fim_pre(vocab), L.llama_vocab_fim_suf(vocab), L.llama_vocab_fim_mid(vocab)
    if min(needed) < 0:
        return ()
    return tuple(map(int, (*needed, L.llama_vocab_fim_rep(vocab), L.llama_vocab_fim_sep(vocab))))


_ALPHA = "adapter.lora.alpha"
_FLOAT32 = struct.pack("<I", 6)  # GGUF's number of the value type


def check_adapter(path: str, architecture: str) -> None:
    """Check the file of a LoRA adapter before native code reads it. Raises BadRequest that names the file."""
    try:
        gguf = read_gguf(Path(path))
    except OllamaError as error:
        raise _unusable(path, error.message) from error
    facts = gguf.metadata
    if facts.get("general.type") != "adapter" or facts.get("adapter.type") != "lora":
        raise _unusable(path, "it is not a LoRA adapter by its metadata (general.type, adapter.type)")
    if gguf.architecture != architecture:
        raise _unusable(path, f'it was made for the architecture "{gguf.architecture}", the model is "{architecture}"')
    if _ALPHA in facts and not _is_float32(path, _ALPHA.encode()):
        raise _unusable(path, f"{_ALPHA} is not a number of the type float32")
    if not any(tensor.name.endswith(".lora_a") for tensor in gguf.tensors):
        raise _unusable(path, "it changes no weights")


def _is_float32(path: str, key: bytes) -> bool:
    """Return whether a metadata value near the start of the file is a float32; native code aborts on other types."""
    with Path(path).open("rb") as file:
        header = file.read(1 << 20)
    before = struct.pack("<Q", len(key)) + key
    return before + _FLOAT32 in header


def _unusable(path: str, reason: str) -> BadRequest:
    return BadRequest(f"cannot use the adapter {Path(path).name}: {reason}")
