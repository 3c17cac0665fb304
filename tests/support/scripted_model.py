"""A model whose reply is known in advance, with a context of 131,072 tokens: for programs with very long prompts.

One layer of the llama architecture whose attention and feed-forward weights are zero, so that a token's logits depend
on nothing but the token. The embedding of a token is the code (a vector of ±1) of the token that follows it, and the
output matrix has the codes of all tokens. A reply is therefore a chain of tokens, chosen by the first one, and the chat
template ends every prompt with such a first token:

- after a tool's result: ``CLOSING``;
- else, if a known tool is offered: a call of that tool, in JSON between ``<tool_call>`` tags;
- else ``PLAIN``.

The vocabulary is Sprout's (bytes, and merges: a token is about three bytes of a prompt) and the tokens of the replies.
Sampling at temperature 1 gives the same text: see ``MARGIN``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFWriter, TokenType

CONTEXT = 131_072
_VOCABULARY = Path(__file__).parents[2] / "ollama_nb" / "sprout" / "sprout-q8_0.gguf"
_WIDTH, _HEAD = 64, 16  # embedding length; the small head keeps the cache of a full context at 8 MiB
_SHARPNESS = 2.0
_PIECE = 9  # characters of a token, at least
MARGIN = 30.0  # logits between the next token and every other: e^-30 is the probability of another one
_END = 2  # Sprout's <|im_end|>

_TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' }}{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
{{- '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{%- set ns = namespace(first='PLAIN') %}
{%- for tool in tools or [] %}
{%- set found = CALLS[tool.function.name] %}{%- if found %}{%- set ns.first = found %}{%- endif %}
{%- endfor %}
{%- if messages[-1].role == 'tool' %}{%- set ns.first = 'CLOSING' %}{%- endif %}
{{- '<|im_start|>assistant\\n' + ns.first }}
{%- endif %}
"""


CLOSING, PLAIN = "The work is done. 工作已完成。", "The sky is blue. 天空是蓝色的。"
Calls = Mapping[str, Mapping[str, Any]]


def scripted_model(path: Path, calls: Calls = MappingProxyType({})) -> Path:
    """Write the model. ``calls``: tool name → arguments."""
    texts = [*(_call_text(name, arguments) for name, arguments in calls.items()), CLOSING, PLAIN]
    firsts = [f"<|first_{number}|>" for number in range(len(texts))]
    tokens, types, merges = _vocabulary()
    chains = _Chains([*tokens, *firsts])
    for at, text in enumerate(texts, len(tokens)):
        chains.following[at] = chains.add(text)
    types += [TokenType.CONTROL] * len(firsts) + [TokenType.NORMAL] * (len(chains.tokens) - len(tokens) - len(firsts))
    template = (
        _TEMPLATE.replace("CALLS", json.dumps(dict(zip(calls, firsts, strict=False))))
        .replace("PLAIN", firsts[-1])
        .replace("CLOSING", firsts[-2])
    )
    writer = GGUFWriter(path, "llama")
    _add_header(writer, len(chains.tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(chains.tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(_END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    _add_tensors(writer, len(chains.tokens), chains.following)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _call_text(name: str, arguments: Mapping[str, Any]) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{call}</tool_call>"


class _Chains:
    """Adds texts to a vocabulary as chains of new tokens; equal endings share their tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.following: dict[int, int] = {}
        self._ids = {token: number for number, token in enumerate(tokens)}
        self._begins: dict[str, int] = {"": _END}  # what is left of a text → its first token

    def add(self, text: str) -> int:
        """The first token of a text."""
        if text not in self._begins:
            length = _PIECE if len(text) > 2 * _PIECE else len(text)
            while self._ids.get(_as_bytes(text[:length])) in self.following:
                length += 1
                assert length <= len(text), f"{text!r} is the text of a token that has another successor"
            token = self._begins[text] = self._id(_as_bytes(text[:length]))
            self.following[token] = -1  # taken
            self.following[token] = self.add(text[length:])
        return self._begins[text]

    def _id(self, token: str) -> int:
        if token not in self._ids:
            self._ids[token] = len(self.tokens)
            self.tokens.append(token)
        return self._ids[token]


def _vocabulary() -> tuple[list[str], list[int], list[str]]:
    reader = GGUFReader(_VOCABULARY)

    def read(key: str) -> list[Any]:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        assert field is not None
        return list(field.contents())

    return read("tokens"), read("token_type"), read("merges")


def _as_bytes(text: str) -> str:
    """A token as byte-level BPE vocabularies write it: one printable character per byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return "".join(table[byte] for byte in text.encode())


def _add_header(writer: GGUFWriter, size: int) -> None:
    writer.add_name("Scripted")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_tensors(writer: GGUFWriter, size: int, following: Mapping[int, int]) -> None:
    codes = np.random.default_rng(11).choice(np.array([-1.0, 1.0], np.float32), (size, _WIDTH))
    embedding = codes.copy()
    for token, after in following.items():
        embedding[token] = codes[after]
        logits = np.sort(_SHARPNESS * codes @ codes[after])
        assert logits[-1] - logits[-2] > MARGIN, "choose another seed, or a larger _WIDTH"
    one, zero = np.ones(_WIDTH, np.float32), np.zeros
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", one)
    writer.add_tensor("output.weight", _SHARPNESS * codes)
    writer.add_tensor("blk.0.attn_norm.weight", one)
    writer.add_tensor("blk.0.ffn_norm.weight", one)
    for name, shape in (
        ("attn_q", (_HEAD, _WIDTH)),
        ("attn_k", (_HEAD, _WIDTH)),
        ("attn_v", (_HEAD, _WIDTH)),
        ("attn_output", (_WIDTH, _HEAD)),
        ("ffn_gate", (32, _WIDTH)),
        ("ffn_up", (32, _WIDTH)),
        ("ffn_down", (_WIDTH, 32)),
    ):
        writer.add_tensor(f"blk.0.{name}.weight", zero(shape, np.float32))
