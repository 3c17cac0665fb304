"""Supported types can be made without an importance matrix; refused types cannot."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ollama_nb.engine.llama.quantize import quantize
from ollama_nb.errors import BadRequest, LoadError
from ollama_nb.store import quantization
from ollama_nb.store.gguf import read_gguf
from ollama_nb.store.quantization import FILE_TYPES

WIDTH = 256  # of a full block of the K types


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer without a vocabulary."""
    path = tmp_path_factory.mktemp("weights") / "wide.gguf"
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(1)
    out.add_context_length(64)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(WIDTH)
    out.add_head_count(4)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(64)
    out.add_file_type(1)
    random = np.random.default_rng(1)
    for name in ("token_embd", "output", *(f"blk.0.attn_{part}" for part in ("q", "k", "v", "output"))):
        rows = 64 if name in ("token_embd", "output") else WIDTH
        out.add_tensor(f"{name}.weight", random.standard_normal((rows, WIDTH)).astype(np.float16))
    for part in ("gate", "up", "down"):
        out.add_tensor(f"blk.0.ffn_{part}.weight", random.standard_normal((WIDTH, WIDTH)).astype(np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        out.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.mark.parametrize("name", quantization.SUPPORTED)
def test_supported_types_can_be_made(name: str, weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    seen: list[tuple[int, int]] = []
    quantize(str(weights), str(target), quantization.file_type_number(name), lambda *step: seen.append(step), threads=1)
    made = read_gguf(target)
    assert made.metadata["general.file_type"] == quantization.file_type_number(name)
    assert seen == [(at, 12) for at in range(12)]
    assert quantization.type_of(made) == name


@pytest.mark.parametrize("name", sorted(quantization.NEED_IMPORTANCE))
def test_types_that_need_an_importance_matrix_are_refused(name: str, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"^{name} requires an importance matrix"):
        quantization.parse_type(name.lower())
    number = next(number for number, other in FILE_TYPES.items() if other == name)
    with pytest.raises(LoadError, match="requires an imatrix"):
        quantize(str(weights), str(tmp_path / "out.gguf"), number, lambda *step: None, threads=1)


def test_kept_tensor_types_override_the_file_type(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    kept = {r"attn_(q|k)\.": 8, r"^output\.": 1}
    quantize(
        str(weights), str(target), quantization.file_type_number("Q4_K_M"), lambda *step: None, threads=1, kept=kept
    )
    types = {tensor.name: tensor.type for tensor in read_gguf(target).tensors}
    assert (types["blk.0.attn_q.weight"], types["blk.0.attn_k.weight"]) == ("Q8_0", "Q8_0")
    assert (types["output.weight"], types["blk.0.attn_output.weight"]) == ("F16", "Q4_K")


@pytest.mark.parametrize(
    ("asked", "name"),
    [("q4_k", "Q4_K_M"), ("Q4_K_M", "Q4_K_M"), ("q3_K", "Q3_K_M"), ("f16", "F16"), ("iq4_xs", "IQ4_XS")],
)
def test_type_names_are_accepted_in_any_case_and_short(asked: str, name: str) -> None:
    assert quantization.parse_type(asked) == name


@pytest.mark.parametrize("asked", ["", "Q9", "COPY", "NVFP4", "q4-k-m", "全"])
def test_unknown_type_names_are_refused(asked: str) -> None:
    with pytest.raises(BadRequest, match=f"unsupported quantization type {asked} - supported types are F32, F16, Q4_0"):
        quantization.parse_type(asked)


def test_kept_tensor_types_depend_on_the_architecture() -> None:
    assert r"nextn\.eh_proj" in quantization.type_overrides("Q4_K_M", "qwen35")
    assert quantization.type_overrides("Q4_0", "qwen35").keys() == quantization.type_overrides("Q4_K_M", "llama").keys()
    assert quantization.type_overrides("F16", "qwen35") == {}


def test_an_invalid_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nonsense")
    with pytest.raises(LoadError, match="cannot write the model: "):
        quantize(str(tmp_path / "x.gguf"), str(tmp_path / "y.gguf"), 2, lambda *step: None)
