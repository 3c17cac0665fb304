"""Every converter: the logits of a converted checkpoint equal those of the reference implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import FAMILIES, GOLDEN, make_checkpoint
from support.engines import logits_of, pooled_of

from ollama_nb.store.convert.convert import convert_model
from ollama_nb.store.gguf import read_gguf

LOGITS = json.loads((GOLDEN / "logits.json").read_text("utf-8"))
ENCODERS = ("embeddinggemma", "bert", "roberta", "xlm-roberta", "distilbert")


def convert(folder: Path, output: str = "F32") -> Path:
    target = folder.parent / f"{folder.name}-{output}.gguf"
    convert_model(folder, target, output, lambda done, total: None)
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_reference(family: str, tmp_path: Path) -> None:
    path = convert(make_checkpoint(family, tmp_path / family))
    read_gguf(path, arrays=True)
    answer = (pooled_of if family in ENCODERS else logits_of)(path, LOGITS["prompt"])
    expected = np.array(LOGITS["answers"][family], np.float32)
    assert expected.std() > 0.1, "the reference is trivial"
    assert np.abs(answer - expected).max() < 1e-3
