"""A model's weights and vocabulary."""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as L
import numpy as np

from ollama_nb.engine.adapters import look_over, unusable
from ollama_nb.engine.llama.native import complaint, forget_log, log_text, start
from ollama_nb.errors import LoadError

POOLING = {-1: "none", 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
MOST_ADAPTERS = 8
"""LoRA adapters that stay in memory although nobody uses them."""
_KV_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5}
_CONTROL, _USER_DEFINED = 1 << 3, 1 << 4  # of enum llama_token_attr
_PIECE_BYTES = 512


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
        start()
        if not Path(path).is_file():
            raise LoadError(f"cannot load the model: no such file: {path}")
        forget_log()
        params = L.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = max(-1, min(n_gpu_layers, 10_000))
        params.load_mode = int(use_mmap)
        if main_gpu is not None:
            params.split_mode, params.main_gpu = L.LLAMA_SPLIT_MODE_NONE, max(0, main_gpu)
        self.handle = L.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise LoadError(f"cannot load the model: {complaint('llama.cpp gave no reason')}")
        self.close = weakref.finalize(self, L.llama_model_free, self.handle)
        found = re.findall(r"offloaded (\d+)/(\d+) layers", log_text())
        self.offloaded = int(found[-1][0]) / max(1, int(found[-1][1])) if found else 0.0
        """Share of the layers that llama.cpp put on a GPU, 0 to 1, as its log said."""
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

    def adapter(self, path: str) -> Any:
        """The native half of a LoRA adapter, read once and kept until ``forget_adapters``. Raises BadRequest."""
        handle = self._adapters.pop(path, None)
        if handle is None:
            look_over(path, self.architecture)
            forget_log()
            handle = L.llama_adapter_lora_init(self.handle, path.encode())
            if not handle:
                reason = complaint("it does not fit this model").removeprefix("failed to apply lora adapter: ")
                raise unusable(path, reason)
        self._adapters[path] = handle  # the last one is the one used last
        return handle

    def forget_adapters(self, needed: Collection[str]) -> None:
        """Free those used longest ago, beyond ``MOST_ADAPTERS``; ``needed``: in use, by whatever context."""
        spare = len(self._adapters) - MOST_ADAPTERS
        for path in [path for path in self._adapters if path not in needed][: max(0, spare)]:
            L.llama_adapter_lora_free(self._adapters.pop(path))

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
        """Tokens of a text; ``add_special`` adds what the tokenizer adds by itself (BOS, EOS, CLS, SEP).

        With ``parse_special`` too, a BOS that the text itself begins with is the added one: there are never two.
        """
        if add_special and parse_special and self.add_bos:
            text = text.removeprefix(self.bos_text)
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

    def texts(self) -> list[bytes]:
        """All tokens as the file spells them."""
        vocab, text = self.vocab, L.llama_vocab_get_text
        return [text(vocab, token) or b"" for token in range(self.n_vocab)]

    @property
    def vocabulary_type(self) -> int:
        """llama.cpp's number for the kind of tokenizer."""
        return int(L.llama_vocab_type(self.vocab))

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

    def _render(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        count = L.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = L.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
        return buffer.raw[:count]
