"""Every kind of tokenizer: the tokens of 200 texts are those of the tokenizer that the checkpoint came with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import GOLDEN, lay_tokenizer, make_checkpoint
from support.logits import tokens_of

from ollama_nb.store.convert.convert import convert_model

_FOUND = json.loads((GOLDEN / "tokens.json").read_text("utf-8"))
TEXTS: list[str] = _FOUND["texts"]
TOKENS: dict[str, list[list[int]]] = _FOUND["tokens"]
FAMILY = {"wordpiece": "bert", "unigram": "xlm-roberta", "bpe-gpt2": "roberta"}


def convert(kind: str, folder: Path) -> Path:
    make_checkpoint(FAMILY.get(kind, "qwen3"), folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    lay_tokenizer(kind, folder)
    convert_model(folder, folder / "out.gguf", "F16", lambda done, total: None)
    return folder / "out.gguf"


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_are_those_of_the_original(kind: str, tmp_path: Path) -> None:
    assert len(TEXTS) == 200
    found = tokens_of(convert(kind, tmp_path / "model"), TEXTS)
    wrong = [(t, a, b) for t, a, b in zip(TEXTS, found, TOKENS[kind], strict=True) if a != b]
    assert not wrong, f"{len(wrong)} of 200: {wrong[:3]}"
