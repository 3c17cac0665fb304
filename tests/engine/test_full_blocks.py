"""As many sequences as fill blocks of output rows exactly: the scratch sequence needs a row beyond them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_nb.engine.llama import Context, Decoded, Model


@pytest.mark.model
@pytest.mark.parametrize("count", [8, 16, 32])
def test_every_sequence_may_write_in_one_step(models: Path, count: int) -> None:
    model = Model(str(models / "stories260K-q8_0.gguf"))
    context = Context(model, cells=4 * count, n_seq=count, n_batch=64, n_ubatch=64, n_threads=1)
    context.tokens[:count], context.positions[:count] = 1, 0
    context.sequences[:count], context.outputs[:count] = range(count), 1
    assert context.decode(count) is Decoded.DONE
    assert context.n_outputs > count
    context.close()
    model.close()
