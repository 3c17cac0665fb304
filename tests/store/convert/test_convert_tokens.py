"""Every kind of tokenizer: the tokens of 200 texts equal those of the original tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from gguf import TokenType
from support.checkpoints import GOLDEN, copy_tokenizer, make_checkpoint, write_json
from support.engines import tokens_of

from ollama_nb.errors import BadRequest
from ollama_nb.store.convert.checkpoint import Checkpoint
from ollama_nb.store.convert.convert import convert_model
from ollama_nb.store.convert.tokenizers import read_vocabulary
from ollama_nb.store.gguf import read_gguf

_FOUND = json.loads((GOLDEN / "tokens.json").read_text("utf-8"))
TEXTS: list[str] = _FOUND["texts"]
TOKENS: dict[str, list[list[int]]] = _FOUND["tokens"]
FAMILY = {"wordpiece": "bert", "unigram": "xlm-roberta", "bpe-gpt2": "roberta"}


def convert(kind: str, folder: Path) -> Path:
    make_checkpoint(FAMILY.get(kind, "qwen3"), folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    copy_tokenizer(kind, folder)
    convert_model(folder, folder / "out.gguf", "F16", lambda done, total: None)
    return folder / "out.gguf"


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_equal_the_original(kind: str, tmp_path: Path) -> None:
    assert len(TEXTS) == 200
    found = tokens_of(convert(kind, tmp_path / "model"), TEXTS)
    wrong = [(t, a, b) for t, a, b in zip(TEXTS, found, TOKENS[kind], strict=True) if a != b]
    assert not wrong, f"{len(wrong)} of 200: {wrong[:3]}"


def split_tokenizer(folder: Path, named: str = "") -> None:
    """Replace ``tokenizer.json`` by the files of older checkpoints."""
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json").unlink()
    merges = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    write_json(folder / "vocab.json", tokenizer["model"]["vocab"])
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    added = {str(token.pop("id")): token for token in tokenizer["added_tokens"]}
    write_json(folder / "tokenizer_config.json", {**config, "tokenizer_class": named, "added_tokens_decoder": added})


@pytest.mark.parametrize(
    ("kind", "named"), [("bpe-qwen2", "Qwen2TokenizerFast"), ("bpe-qwen2", ""), ("bpe-gpt2", "RobertaTokenizer")]
)
def test_vocab_json_and_merges_txt(kind: str, named: str, tmp_path: Path) -> None:
    whole, folder = convert(kind, tmp_path / "whole"), tmp_path / "apart"
    shutil.copytree(whole.parent, folder)
    split_tokenizer(folder, named)
    convert_model(folder, folder / "out.gguf", "F16", lambda done, total: None)
    found = tokens_of(folder / "out.gguf", TEXTS)
    wrong = [(t, a, b) for t, a, b in zip(TEXTS, found, TOKENS[kind], strict=True) if a != b]
    assert not wrong, f"{len(wrong)} of 200: {wrong[:3]}"
    apart, joined = (read_gguf(path, arrays=True).metadata for path in (folder / "out.gguf", whole))
    keys = {key for key in (*apart, *joined) if key.startswith("tokenizer.")}
    assert {key: apart.get(key) for key in keys} == {key: joined.get(key) for key in keys}


def test_special_tokens_of_vocab_json(tmp_path: Path) -> None:
    """They are found by role or by form, because older checkpoints do not list them elsewhere."""
    folder = make_checkpoint("qwen3", tmp_path / "c")
    split_tokenizer(folder)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "tokenizer_class": "GPT2Tokenizer"})
    vocabulary = read_vocabulary(Checkpoint(folder))
    kinds = {text: vocabulary.types[vocabulary.tokens.index(text)] for text in ("<s>", "<|im_start|>", "a")}
    assert kinds == {"<s>": TokenType.CONTROL, "<|im_start|>": TokenType.CONTROL, "a": TokenType.NORMAL}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", '{"tokenizer_class": "BartTokenizer"}', '"BartTokenizer" is not known: add'),
        ("vocab.json", '{"a": "b"}', "vocab.json has no valid token ids"),
        ("merges.txt", "a b\na b c\n", "merges.txt has the line 'a b c', which is not a pair"),
    ],
)
def test_invalid_vocabulary_files(file: str, content: str, message: str, tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3", tmp_path / "c")
    split_tokenizer(folder, "Qwen2Tokenizer")
    (folder / file).write_text(content, "utf-8")
    with pytest.raises(BadRequest, match=message):
        read_vocabulary(Checkpoint(folder))
