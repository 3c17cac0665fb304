"""Parsers of checkpoint files: exact, limited in size, and with a clear error for invalid files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import GOLDEN, PRETOKENIZERS, make_checkpoint, stored, weights, write_json, write_safetensors
from support.engines import pooled_of

from ollama_nb.errors import BadRequest, CorruptModel
from ollama_nb.store.convert.checkpoint import Checkpoint, read_safetensors
from ollama_nb.store.convert.convert import convert_model
from ollama_nb.store.convert.sentencepiece import read_sentencepiece
from ollama_nb.store.convert.tokenizers import pretokenizer, read_vocabulary
from ollama_nb.store.gguf import read_gguf

SENTENCEPIECE = (GOLDEN / "sentencepiece" / "tokenizer.model").read_bytes()


def convert(folder: Path, output: str = "F16") -> Path:
    convert_model(folder, folder / "out.gguf", output, lambda done, total: None)
    return folder / "out.gguf"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64"])
def test_values_of_all_types(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"a": values, "b": values[:1]}, kind)
    a, b = read_safetensors(tmp_path / "a.safetensors", "a")
    assert (a.name, a.shape, b.shape) == ("a", (3, 5), (1, 5))
    raw = stored(values, kind)
    if kind == "BF16":
        expected = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        expected = np.frombuffer(raw, {"F32": "f4", "F16": "f2", "F64": "f8"}[kind]).astype(np.float32)
    assert np.array_equal(a.load().astype(np.float32).ravel(), expected)


def entry(**change: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "header is not valid JSON"),
        (b"[]", "not a JSON object of tensors"),
        (json.dumps({"a": 1}).encode(), "'a' has no valid data_offsets"),
        (json.dumps({"a": entry(data_offsets=[0, 9])}).encode(), "beyond the end"),
        (json.dumps({"a": entry(data_offsets=[-1, 7])}).encode(), "beyond the end"),
        (json.dumps({"a": entry(data_offsets=[8, 0])}).encode(), "beyond the end"),
        (json.dumps({"a": entry(shape=[3])}).encode(), "does not match its size"),
        (json.dumps({"a": entry(shape=[-2])}).encode(), "does not match its size"),
        (json.dumps({"a": entry(shape=[1] * 9)}).encode(), "does not match its size"),
        (json.dumps({"a": entry(dtype="Q4")}).encode(), "unknown type 'Q4'"),
        (json.dumps({"a": entry(dtype=["F32"])}).encode(), r"unknown type \['F32'\]"),
        (json.dumps({"a": entry(dtype="F8_E4M3")}).encode(), "stored as F8_E4M3; use a checkpoint in BF16"),
        (b"[" * 100_000, "header is not valid JSON"),
    ],
)
def test_invalid_safetensors_files(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CorruptModel, match=message):
        list(read_safetensors(path, "a.safetensors"))


@pytest.mark.parametrize("data", [b"", b"\x01", struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 99) + b"{}"])
def test_truncated_safetensors_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CorruptModel, match="header is longer than the file"):
        list(read_safetensors(tmp_path / "a", "a"))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=80), at=st.integers(0, len(SENTENCEPIECE)), cut=st.integers(0, len(SENTENCEPIECE)))
def test_mutated_sentencepiece_models(data: bytes, at: int, cut: int) -> None:
    for mutant in (data, SENTENCEPIECE[:at] + data + SENTENCEPIECE[at + len(data) :], SENTENCEPIECE[:cut]):
        try:
            vocabulary = read_sentencepiece(mutant)
        except CorruptModel:
            continue
        assert len(vocabulary.tokens) == len(vocabulary.types) == len(vocabulary.scores or ())


@pytest.mark.parametrize(
    ("rule", "name"), [("llama3", "smaug-bpe"), ("qwen2", "qwen2"), ("gpt2", "gpt-2"), ("smollm", "smollm")]
)
def test_pretokenizers_are_found_by_expression(rule: str, name: str) -> None:
    assert pretokenizer({"pre_tokenizer": PRETOKENIZERS[rule], "model": {}}) == name


def test_pretokenizer_without_ignore_merges() -> None:
    assert pretokenizer({"pre_tokenizer": PRETOKENIZERS["llama3"], "model": {"ignore_merges": True}}) == "llama-bpe"


@pytest.mark.parametrize(
    "rule", [None, {"type": "Whitespace"}, {"type": "Split", "pattern": {"Regex": "x+"}}, {"type": "Digits"}]
)
def test_unsupported_pretokenizers(rule: Any) -> None:
    with pytest.raises(BadRequest, match=r"llama\.cpp does not support the pre-tokenizer of this model"):
        pretokenizer({"pre_tokenizer": rule})


def test_checkpoint_in_several_files(tmp_path: Path) -> None:
    one, three = make_checkpoint("llama", tmp_path / "one"), make_checkpoint("llama", tmp_path / "three", files=3)
    found = [{t.name: t.data.tobytes() for t in gguf.GGUFReader(convert(folder)).tensors} for folder in (one, three)]
    assert found[0] == found[1]


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "c", files=2)
    lost = "model-00002-of-00002.safetensors"
    names = dict.fromkeys(list(weights("llama"))[1::2], lost)
    write_json(folder / "model.safetensors.index.json", {"weight_map": names})
    (folder / lost).unlink()
    with pytest.raises(CorruptModel, match=rf"not complete: {len(names)} tensors are missing, such as {lost}"):
        convert(folder)


def test_output_is_reproducible(tmp_path: Path) -> None:
    first, second = (convert(make_checkpoint("gemma3", tmp_path / name)) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_special_tokens_and_the_chat_template(tmp_path: Path) -> None:
    made = read_gguf(convert(make_checkpoint("qwen2", tmp_path / "c")), arrays=True).metadata
    assert made["tokenizer.chat_template"].startswith("{% for m in messages %}<|im_start|>")
    assert (made["tokenizer.ggml.bos_token_id"], made["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert made["tokenizer.ggml.add_bos_token"] is False
    types = dict(zip(made["tokenizer.ggml.tokens"], made["tokenizer.ggml.token_type"], strict=True))
    assert (types["<|im_start|>"], types["<tool_call>"], types["[PAD639]"]) == (3, 4, 5)
    assert len(types) == 640


def test_chat_template_in_a_separate_file(tmp_path: Path) -> None:
    folder = make_checkpoint("bert", tmp_path / "c")
    (folder / "chat_template.jinja").write_text("{{ 你好 }}", "utf-8")
    assert read_gguf(convert(folder)).metadata["tokenizer.chat_template"] == "{{ 你好 }}"


def test_vocab_txt(tmp_path: Path) -> None:
    folder = make_checkpoint("bert", tmp_path / "c")
    with_json = read_vocabulary(Checkpoint(folder))
    (folder / "tokenizer.json").unlink()
    assert read_vocabulary(Checkpoint(folder)).tokens == with_json.tokens


def test_vocab_txt_that_is_not_utf8(tmp_path: Path) -> None:
    folder = make_checkpoint("bert", tmp_path / "c")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_bytes("[UNK]\né\n".encode("latin-1"))
    with pytest.raises(CorruptModel, match=r"vocab\.txt is not UTF-8 text"):
        convert(folder)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    folder = make_checkpoint("bert", tmp_path / "c")
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    with pytest.raises(BadRequest, match=r"no tokenizer: tokenizer\.json, .* is needed, or vocab\.json and merges"):
        convert(folder)


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("llama", "model.layers.0.self_attn.strange.weight", "tensor '.*strange.weight' is not part of the arch"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.0.w1.weight", "experts are missing: blk.0.ffn_gate_exps"),
    ],
)
def test_unknown_and_missing_tensors(tmp_path: Path, family: str, name: str, message: str) -> None:
    folder = make_checkpoint(family, tmp_path / "c")
    tensors = weights(family)
    if tensors.pop(name, None) is None:
        tensors[name] = np.zeros((2, 2), np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(BadRequest, match=message):
        convert(folder)


def test_text_files_are_limited_in_size(tmp_path: Path) -> None:
    folder = make_checkpoint("bert", tmp_path / "c")
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(200 << 20)
    with pytest.raises(BadRequest, match=r"tokenizer\.json is larger than 128 MiB"):
        convert(folder)


@pytest.mark.parametrize(
    ("settings_", "kind"),
    [
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
def test_pooling(tmp_path: Path, settings_: dict[str, Any], kind: int) -> None:
    folder = make_checkpoint("qwen3", tmp_path / "c")
    write_json(folder / "modules.json", [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_P"}])
    (folder / "1_P").mkdir()
    write_json(folder / "1_P" / "config.json", settings_)
    assert read_gguf(convert(folder)).arch("pooling_type") == kind


def test_an_unknown_pooling(tmp_path: Path) -> None:
    folder = make_checkpoint("bert", tmp_path / "c")
    write_json(folder / "modules.json", [{"type": "a.Pooling", "path": "1_P"}])
    with pytest.raises(BadRequest, match="unsupported pooling"):
        convert(folder)


def dense(folder: Path, **change: Any) -> Path:
    """Create an embedding model with two dense layers after its pooling."""
    make_checkpoint("embeddinggemma", folder)
    identity = {"activation_function": "torch.nn.modules.linear.Identity", "bias": False, **change}
    modules = [{"type": "x.Dense", "path": "2_Dense"}, {"type": "x.Dense", "path": "3_Dense"}]
    write_json(folder / "modules.json", modules)
    for name, shape in (("2_Dense", (48, 32)), ("3_Dense", (32, 48))):
        (folder / name).mkdir()
        write_json(folder / name / "config.json", identity)
        write_safetensors(folder / name / "model.safetensors", {"linear.weight": np.ones(shape, np.float32)})
    return folder


def test_dense_layers(tmp_path: Path) -> None:
    made = read_gguf(convert(dense(tmp_path / "c")))
    shapes = {tensor.name: tensor.shape for tensor in made.tensors}
    assert (shapes["dense_2.weight"], shapes["dense_3.weight"]) == ((32, 48), (48, 32))
    assert [made.arch(f"dense_{n}_feat_{side}") for n in (2, 3) for side in ("in", "out")] == [32, 48, 48, 32]
    assert np.isfinite(pooled_of(tmp_path / "c" / "out.gguf", [5, 6, 7])).all()


def test_unsupported_dense_layers(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"2_Dense: llama\.cpp supports two dense layers"):
        convert(dense(tmp_path / "c", activation_function="torch.nn.modules.activation.Tanh"))


def test_a_second_copy_in_another_layout_is_ignored(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "c")
    write_safetensors(
        folder / "consolidated.safetensors", {"layers.0.attention.wq.weight": np.zeros((2, 2), np.float32)}
    )
    assert read_gguf(convert(folder)).architecture == "llama"
