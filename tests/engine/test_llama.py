"""The llama.cpp wrappers: errors instead of aborts, and memory operations with real contexts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from ollama_nb.engine.llama import Context, DecodeStatus, LlamaModel, native
from ollama_nb.errors import BadRequest, LoadError
from ollama_nb.sprout import GGUF


@pytest.fixture(scope="module")
def model(models: Path) -> Iterator[LlamaModel]:
    model = LlamaModel(str(models / "stories260K-f32.gguf"))
    yield model
    model.close()


@pytest.fixture
def context(model: LlamaModel) -> Iterator[Context]:
    context = Context(model, cells=256, n_seq=3, n_batch=128, n_ubatch=64, n_threads=1)
    yield context
    context.close()


def read(context: Context, seq: int, tokens: list[int], start: int = 0) -> np.ndarray:
    count = len(tokens)
    context.tokens[:count], context.positions[:count] = tokens, np.arange(start, start + count)
    context.sequences[:count], context.outputs[:count] = seq, 0
    context.outputs[count - 1] = 1
    assert context.decode(count) is DecodeStatus.DONE
    return context.logits()[0].copy()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot load the model"), (b"GGUF", "cannot load the model"), (b"not a model" * 99, "magic")],
    ids=["empty", "only a magic", "something else"],
)
def test_a_file_that_is_no_model_is_explained(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=reason):
        LlamaModel(str(path))


def test_a_truncated_model_is_explained(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes((models / "stories260K-f32.gguf").read_bytes()[:-1000])
    with pytest.raises(LoadError, match=r"cannot load the model: .*(bounds|corrupted|incomplete)"):
        LlamaModel(str(path))


def test_a_missing_file_is_reported() -> None:
    with pytest.raises(LoadError, match=r"no such file: /nowhere\.gguf"):
        LlamaModel("/nowhere.gguf")


def test_another_release_is_refused_with_the_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "__version__", "0.2.0")
    native.start.cache_clear()
    with pytest.raises(LoadError, match=r"pip install llama-cpp-python==0\.3\.36"):
        LlamaModel("/nowhere.gguf")


def test_an_invalid_adapter_is_reported(model: LlamaModel, tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(b"nothing")
    with pytest.raises(BadRequest, match=r"cannot use the adapter adapter\.gguf: .*GGUF"):
        model.adapter(str(path))


def test_shared_cells_continue_like_the_original(model: LlamaModel, context: Context) -> None:
    tokens = model.tokenize("Once upon a time, there was a little girl")
    whole = read(context, 0, tokens)
    assert context.share(0, 1, len(tokens) - 1)
    shared = read(context, 1, tokens[-1:], len(tokens) - 1)
    np.testing.assert_allclose(shared, whole, atol=1e-3)
    assert context.extent(1) == (0, len(tokens) - 1)


def test_missing_cells_cannot_be_shared(context: Context) -> None:
    read(context, 0, [3, 4, 5])
    assert not context.share(0, 1, 9) and context.extent(1) == (-1, -1)
    assert not context.share(2, 1, 3)


def test_a_cut_restores_the_earlier_state(model: LlamaModel, context: Context) -> None:
    tokens = model.tokenize("Once upon a time")
    before = read(context, 0, tokens)
    read(context, 0, [403, 407], len(tokens))
    assert context.cut(0, len(tokens) - 1)
    np.testing.assert_allclose(read(context, 0, tokens[-1:], len(tokens) - 1), before, atol=1e-3)
    assert context.cut(0, 0) and context.extent(0) == (-1, -1)


def test_a_shift_closes_the_gap(context: Context) -> None:
    read(context, 0, list(range(3, 23)))
    assert context.can_shift and context.shift(0, 4, 8)
    assert context.extent(0) == (0, 11)
    read(context, 0, [5], 12)


def test_a_shift_does_not_change_shared_cells(model: LlamaModel, context: Context) -> None:
    tokens = model.tokenize("Once upon a time, there was a little girl who had a dog")
    read(context, 0, tokens)
    before = read(context, 2, tokens)
    assert context.share(0, 1, len(tokens)) and context.shift(1, 2, 4)
    assert context.extent(1) == (0, len(tokens) - 5) and context.extent(0) == (0, len(tokens) - 1)
    assert context.cut(0, len(tokens) - 1)
    np.testing.assert_allclose(read(context, 0, tokens[-1:], len(tokens) - 1), before, atol=1e-2)
    assert context.shift(0, 2, 4) and context.extent(0) == context.extent(1)


def test_a_full_cache_is_reported(context: Context) -> None:
    read(context, 0, [3] * 128)
    read(context, 0, [3] * 128, 128)
    context.tokens[0], context.positions[0], context.sequences[0] = 3, 256, 0
    assert context.decode(1) is DecodeStatus.CACHE_FULL


def test_an_abort_stops_the_decode_until_rearmed(context: Context) -> None:
    context.abort()
    context.tokens[:64], context.positions[:64], context.sequences[:64] = 3, np.arange(64), 0
    assert context.decode(64) is DecodeStatus.ABORTED
    assert context.extent(0) == (-1, -1), "its cells are free again"
    context.rearm()
    assert context.decode(64) is DecodeStatus.DONE


def test_a_gap_is_invalid(context: Context) -> None:
    read(context, 0, [3, 4])
    context.tokens[0], context.positions[0], context.sequences[0] = 3, 9, 0
    assert context.decode(1) is DecodeStatus.INVALID


@pytest.mark.parametrize("count", [0, 129])
def test_an_empty_or_oversized_batch_is_refused(context: Context, count: int) -> None:
    with pytest.raises(ValueError, match="n_batch is 128"):
        context.decode(count)


def test_closing_twice_is_safe(models: Path) -> None:
    model = LlamaModel(str(models / "stories260K-q8_0.gguf"))
    context = Context(model, cells=256, n_seq=1, n_batch=32, n_ubatch=32, n_threads=1)
    for _ in range(2):
        context.close()
        model.close()


@pytest.mark.model
@pytest.mark.parametrize("count", [8, 16, 32])
def test_every_sequence_can_have_an_output_row_in_one_step(models: Path, count: int) -> None:
    """With full blocks of sequences, the scratch sequence needs an output row beyond them."""
    model = LlamaModel(str(models / "stories260K-q8_0.gguf"))
    context = Context(model, cells=4 * count, n_seq=count, n_batch=64, n_ubatch=64, n_threads=1)
    context.tokens[:count], context.positions[:count] = 1, 0
    context.sequences[:count], context.outputs[:count] = range(count), 1
    assert context.decode(count) is DecodeStatus.DONE
    assert context.n_outputs > count
    context.close()
    model.close()


def test_tokens_that_mark_a_gap(model: LlamaModel) -> None:
    assert model.fill_tokens == ()
    sprout = LlamaModel(str(GGUF), vocab_only=True)
    try:
        pieces = [sprout.raw_piece(token) for token in sprout.fill_tokens[:3]]
        assert pieces == [b"<|fim_prefix|>", b"<|fim_suffix|>", b"<|fim_middle|>"]
    finally:
        sprout.close()
