"""Create from checkpoints, split files and adapters, and quantization: in real conversion processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.checkpoints import make_checkpoint, write_json, write_safetensors
from support.checkpoints import weights as weights_of
from support.engines import logits_of
from support.ggufs import STRING
from support.ggufs import gguf as gguf_bytes
from support.service_harness import MODELS, PLAIN, ServiceHarness, collect
from support.stores import check_sound, snapshot

from ollama_nb.api.events import Progress
from ollama_nb.api.models import Model
from ollama_nb.api.names import ModelName
from ollama_nb.api.requests import CreateRequest
from ollama_nb.errors import OllamaError, RunnerCrashed
from ollama_nb.store import quantization

PROMPT = [5, 300, 17, 42, 8]


def create(harness: ServiceHarness, **fields: Any) -> list[Progress]:
    return asyncio.run(collect(harness.service.create(CreateRequest(model="new", **fields))))


def uploaded(harness: ServiceHarness, folder: Path) -> dict[str, str]:
    """All files of a folder as blobs, by their names."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): str(harness.service.blobs.add_file(path)) for path in files}


def made(harness: ServiceHarness) -> Model:
    return harness.service.store.resolve(ModelName.parse("new"))


def statuses(lines: list[Progress]) -> list[str]:
    short = [line.status.partition(" sha256:")[0] for line in lines]
    return [status for at, status in enumerate(short) if at == 0 or status != short[at - 1]]


def test_a_checkpoint_becomes_a_model(harness: ServiceHarness, tmp_path: Path) -> None:
    files = uploaded(harness, make_checkpoint("qwen3", tmp_path / "c", kind="BF16", files=2))
    lines = create(harness, files={f"deep/{name}": digest for name, digest in files.items()}, system="你好")
    assert statuses(lines) == [
        "converting model",
        "verifying conversion",
        "creating new layer",
        "writing manifest",
        "success",
    ]
    model = made(harness)
    assert (model.config.model_family, model.config.file_type, model.system) == ("qwen3", "F16", "你好")
    assert model.weights is not None and np.isfinite(logits_of(model.weights, PROMPT)).all()
    check_sound(harness.settings.models)
    assert list((harness.settings.home / "tmp").iterdir()) == []


def test_only_the_text_model_of_a_vision_model(harness: ServiceHarness, tmp_path: Path) -> None:
    """The omitted parts are reported; the text model is described by its own part of the configuration."""
    folder = make_checkpoint("gemma3", tmp_path / "c")
    text = json.loads((folder / "config.json").read_bytes())
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    write_json(folder / "config.json", config)
    tensors = {f"language_model.{name}": tensor for name, tensor in weights_of("gemma3").items()}
    tensors["vision_tower.vision_model.embeddings.patch_embedding.weight"] = np.zeros((2, 2), np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    lines = create(harness, files=uploaded(harness, folder))
    assert any(line.startswith("warning: only the text model was converted") for line in statuses(lines))
    assert made(harness).config.model_family == "gemma3"


@pytest.mark.parametrize(("wanted", "shown"), [("F32", "unknown"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_a_checkpoint_in_another_type(harness: ServiceHarness, tmp_path: Path, wanted: str, shown: str) -> None:
    lines = create(harness, files=uploaded(harness, make_checkpoint("llama", tmp_path / "c")), quantize=wanted)
    assert made(harness).config.file_type == shown
    assert ("quantizing F16 model to Q8_0" in statuses(lines)) == (wanted == "q8_0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPTJForCausalLM"]}, 'unsupported architecture "GPTJForCausalLM"'),
        ({"architectures": []}, "unknown architecture"),
        ({"model_type": "ministral3"}, "unsupported architecture: text model of type 'ministral3'"),
        ({"num_hidden_layers": 3}, "not complete: it has no tensors of layer 2 of 3"),
        ({"num_hidden_layers": 10**9}, "declares 1000000000 layers"),
        ({"num_attention_heads": 0}, "'num_attention_heads' in config.json is missing or not a positive integer"),
        ({"rms_norm_eps": "x"}, "cannot be converted"),
    ],
)
def test_an_invalid_checkpoint(
    harness: ServiceHarness, tmp_path: Path, change: Mapping[str, Any], message: str
) -> None:
    folder = make_checkpoint("llama", tmp_path / "c")
    write_json(folder / "config.json", {**json.loads((folder / "config.json").read_bytes()), **change})
    files = uploaded(harness, folder)
    before = snapshot(harness.settings.models)
    with pytest.raises(OllamaError, match=message) as caught:
        create(harness, files=files)
    assert caught.value.status == 400
    assert snapshot(harness.settings.models) == before
    assert list((harness.settings.home / "tmp").iterdir()) == []


def test_files_with_conflicting_paths(harness: ServiceHarness, tmp_path: Path) -> None:
    files = uploaded(harness, make_checkpoint("llama", tmp_path / "c"))
    with pytest.raises(OllamaError, match="a file and a folder have the same name") as caught:
        create(harness, files={**files, "config.json/more.json": files["config.json"]})
    assert caught.value.status == 400
    assert list((harness.settings.home / "tmp").iterdir()) == []


def test_a_model_is_quantized(harness: ServiceHarness) -> None:
    harness.make("base", "stories260K-f32.gguf", template=PLAIN)
    lines = create(harness, from_="base", quantize="Q4_0")
    work = [line for line in lines if line.status == "quantizing F32 model to Q4_0"]
    assert (work[0].completed, work[-1].completed) == (0, work[0].total)
    assert {line.digest for line in work} == {"0000000000000000000"}
    model = made(harness)
    assert (model.config.file_type, model.template) == ("Q4_0", PLAIN)
    assert model.weights is not None
    assert model.weights.stat().st_size < (MODELS / "stories260K-f32.gguf").stat().st_size
    assert np.isfinite(logits_of(model.weights, PROMPT)).all()
    check_sound(harness.settings.models)


def test_the_same_type_needs_no_conversion(harness: ServiceHarness, tmp_path: Path) -> None:
    create(harness, files=uploaded(harness, make_checkpoint("llama", tmp_path / "c")), quantize="F16")
    before = made(harness).weights_digest
    assert not [line for line in create(harness, from_="new", quantize="f16") if "quantizing" in line.status]
    assert made(harness).weights_digest == before


def split(source: Path, folder: Path, name: str = "tiny") -> list[Path]:
    """A GGUF written again in parts of ten tensors, as llama.cpp's own tools write them."""
    reader = gguf.GGUFReader(source)
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama", split_max_tensors=20)
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.iterdir())


def test_a_split_file_is_merged(harness: ServiceHarness, tmp_path: Path) -> None:
    whole = MODELS / "stories260K-f32.gguf"
    parts = split(whole, tmp_path / "parts")
    assert len(parts) > 1
    files = {path.name: str(harness.service.blobs.add_file(path)) for path in reversed(parts)}
    lines = create(harness, files=files)
    assert "validating GGUF model" in statuses(lines)
    weights = made(harness).weights
    assert weights is not None
    assert np.array_equal(logits_of(weights, PROMPT), logits_of(whole, PROMPT))
    assert "split.count" not in harness.service.store.gguf_at(weights).metadata


def split_folder(folder: Path) -> Path:
    return split(MODELS / "stories260K-f32.gguf", folder)[0].parent


def test_a_missing_part(harness: ServiceHarness, tmp_path: Path) -> None:
    parts = split(MODELS / "stories260K-f32.gguf", tmp_path / "parts")
    digests = [str(harness.service.blobs.add_file(path)) for path in parts]
    with pytest.raises(OllamaError, match=rf'"{parts[0].name}" has 1 shards, expected {len(parts)}'):
        create(harness, files={parts[0].name: digests[0]})
    with pytest.raises(OllamaError, match=r"must use llama\.cpp split filename pattern"):
        create(harness, files={"x.gguf": digests[0]})


def refused(harness: ServiceHarness, message: str, **fields: Any) -> None:
    """The create is refused with 400, and the names in the store stay as they are."""
    before = harness.service.store.names()
    with pytest.raises(OllamaError, match=message) as caught:
        create(harness, **fields)
    assert caught.value.status == 400
    assert harness.service.store.names() == before
    assert not (harness.settings.home / "tmp").exists() or list((harness.settings.home / "tmp").iterdir()) == []


def stored(harness: ServiceHarness, *names: str) -> dict[str, str]:
    return {name: str(harness.service.blobs.add_file(MODELS / name)) for name in names}


TWO = r'"%s" and "%s" are two models: name one of them'


def test_several_models_are_refused(harness: ServiceHarness, tmp_path: Path) -> None:
    """Case: FROM a folder with two quantizations, or several FROM lines with whole models."""
    f32, q8 = "stories260K-f32.gguf", "stories260K-q8_0.gguf"
    checkpoint = uploaded(harness, make_checkpoint("llama", tmp_path / "c"))
    parts = uploaded(harness, split_folder(tmp_path / "parts"))
    refused(harness, TWO % (f32, q8), files=stored(harness, q8, f32))
    refused(harness, TWO % ("model.safetensors", q8), files={**checkpoint, **stored(harness, q8)})
    refused(harness, TWO % (q8, "tiny-00001-of-.*"), files={**parts, **stored(harness, q8)})
    two_folders = {f"{folder}/{name}": digest for folder in "ab" for name, digest in checkpoint.items()}
    refused(harness, TWO % ("a/model.safetensors", "b/model.safetensors"), files=two_folders)
    refused(harness, TWO % (f32, q8), files=stored(harness, f32), draft_files=stored(harness, f32, q8))
    harness.make("base", f32)
    refused(harness, TWO % ("base:latest", q8), from_="base", files=stored(harness, q8))
    refused(harness, TWO % ("base:latest", "model.safetensors"), from_="base", files=checkpoint)


def test_two_copies_of_a_checkpoint(harness: ServiceHarness, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "c")
    (folder / "model.fp16.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    refused(
        harness,
        '"model.fp16.safetensors" and "model.safetensors" both have the tensor',
        files=uploaded(harness, folder),
    )


def test_a_projector_beside_a_checkpoint(harness: ServiceHarness, tmp_path: Path) -> None:
    projector = gguf_bytes((("general.architecture", STRING, "clip"), ("general.type", STRING, "mmproj")))
    files = {
        **uploaded(harness, make_checkpoint("llama", tmp_path / "c")),
        "mmproj.gguf": str(harness.service.blobs.add(projector)),
    }
    create(harness, files=files)
    assert len(made(harness).projectors) == 1


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_shard_is_refused_by_its_name(harness: ServiceHarness, tmp_path: Path, lost: int) -> None:
    """Case: a checkpoint of three shards, one missing, without an index."""
    folder = make_checkpoint("llama", tmp_path / "c", files=3)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    shard = sorted(folder.glob("*.safetensors"))[lost]
    shard.unlink()
    refused(harness, f"has 2 shards, expected 3: {shard.name} is missing", files=uploaded(harness, folder))
    adapters = {name: digest for name, digest in uploaded(harness, folder).items() if name.endswith(".safetensors")}
    harness.make("base", "stories260K-f32.gguf")
    refused(harness, f"{shard.name} is missing", from_="base", adapters=adapters)


def test_weights_without_their_settings(harness: ServiceHarness, tmp_path: Path) -> None:
    """Case: files of a checkpoint or an adapter without config.json or adapter_config.json."""
    checkpoint = uploaded(harness, make_checkpoint("llama", tmp_path / "c"))
    weights = {"model.safetensors": checkpoint["model.safetensors"]}
    hint = "name the folder that contains both"
    refused(harness, f'checkpoint "model.safetensors" comes without its config.json: {hint}', files=weights)
    harness.make("base", "stories260K-f32.gguf")
    adapter = {"adapter_model.safetensors": weights["model.safetensors"]}
    message = f'adapter "adapter_model.safetensors" comes without its adapter_config.json: {hint}'
    refused(harness, message, from_="base", adapters=adapter)
    refused(harness, '"adapter_model.safetensors" is an adapter: name it in ADAPTER', files=adapter)


def test_a_lora_adapter(harness: ServiceHarness, tmp_path: Path) -> None:
    """The adapter changes the logits as adding its product to the weights does."""
    base = make_checkpoint("llama", tmp_path / "base")
    create(harness, files=uploaded(harness, base), quantize="F32")
    plain = made(harness).weights
    random = np.random.default_rng(5)
    matrix = "model.layers.1.self_attn.q_proj"
    a, b = (random.standard_normal(shape).astype(np.float32) * 0.3 for shape in ((4, 32), (32, 4)))
    lora = tmp_path / "lora"
    lora.mkdir()
    pair = {f"base_model.model.{matrix}.lora_A.weight": a, f"base_model.model.{matrix}.lora_B.weight": b}
    write_safetensors(lora / "adapter_model.safetensors", pair)
    write_json(lora / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8})
    lines = create(harness, from_="new", adapters=uploaded(harness, lora))
    assert "converting adapter" in statuses(lines)
    (adapter,) = made(harness).adapters
    assert plain is not None
    unchanged, answer = logits_of(plain, PROMPT), logits_of(plain, PROMPT, adapters=(str(adapter),))
    changed = weights_of("llama")
    changed[f"{matrix}.weight"] = changed[f"{matrix}.weight"] + b @ a * (8 / 4)
    write_safetensors(base / "model.safetensors", changed)
    create(harness, files=uploaded(harness, base), quantize="F32")
    expected = made(harness).weights
    assert expected is not None
    assert np.abs(answer - logits_of(expected, PROMPT)).max() < 1e-3
    assert np.abs(answer - unchanged).max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "adapters of the type IA3"),
        ({"lora_alpha": 8, "use_dora": True}, "adapters with use_dora"),
        ({}, "has no lora_alpha"),
    ],
)
def test_adapters_that_are_refused(
    harness: ServiceHarness, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    harness.make("base", "stories260K-f32.gguf")
    write_safetensors(tmp_path / "a.safetensors", {"x.lora_A.weight": np.zeros((1, 1), np.float32)})
    write_json(tmp_path / "adapter_config.json", settings)
    files = {
        name: str(harness.service.blobs.add_file(tmp_path / name)) for name in ("a.safetensors", "adapter_config.json")
    }
    with pytest.raises(OllamaError, match=message):
        create(harness, from_="base", adapters=files)


def test_a_checkpoint_as_draft_model(harness: ServiceHarness, tmp_path: Path) -> None:
    files = uploaded(harness, make_checkpoint("llama", tmp_path / "c"))
    create(harness, files=files)
    lines = create(harness, from_="new", draft_files=files)
    assert "converting model" in statuses(lines)
    model = made(harness)
    assert model.draft is not None
    assert harness.service.store.gguf_at(model.draft).metadata["general.file_type"] == 1


def test_a_draft_model_is_quantized(harness: ServiceHarness) -> None:
    harness.make("base", "stories260K-q4_0.gguf")
    float_, small = (
        str(harness.service.blobs.add_file(MODELS / f"stories260K-{kind}.gguf")) for kind in ("f16", "q4_0")
    )
    lines = create(harness, from_="base", draft_files={"d.gguf": float_}, draft_quantize="q8_0")
    assert "quantizing F16 model to Q8_0" in statuses(lines)
    draft = made(harness).draft
    assert draft is not None
    assert harness.service.store.gguf_at(draft).metadata["general.file_type"] == 7
    with pytest.raises(OllamaError, match="draft quantization requires an unquantized draft model, got Q4_0"):
        create(harness, from_="base", draft_files={"d.gguf": small}, draft_quantize="q8_0")


def test_a_client_that_goes_away_ends_the_conversion(harness: ServiceHarness, tmp_path: Path) -> None:
    """The process is gone, no incomplete file is left, and the store is unchanged."""
    files = uploaded(harness, make_checkpoint("llama", tmp_path / "c"))
    before = snapshot(harness.settings.models)

    async def leave() -> None:
        stream = harness.service.create(CreateRequest(model="new", files=files))
        async with contextlib.aclosing(stream):
            assert (await anext(stream)).status == "converting model"

    asyncio.run(leave())
    assert snapshot(harness.settings.models) == before
    assert list((harness.settings.home / "tmp").iterdir()) == []


def test_a_process_that_dies_is_an_error(
    harness: ServiceHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("/bin/sh", "-c", "echo out of luck; exit 3")
    monkeypatch.setattr("ollama_nb.runner.converter.COMMAND", command)
    files = uploaded(harness, make_checkpoint("llama", tmp_path / "c"))
    with pytest.raises(RunnerCrashed, match=r"the conversion process ended: exited with status 3: out of luck"):
        create(harness, files=files)
    assert not [path for path in harness.service.blobs.root.iterdir() if len(path.name) != 71]


def test_every_offered_type_can_be_made(harness: ServiceHarness, tmp_path: Path) -> None:
    assert {"Q4_0", "Q4_K_M", "Q5_K_S", "Q6_K", "Q8_0", "IQ4_XS", "TQ2_0", "MXFP4_MOE"} <= set(quantization.SUPPORTED)
    harness.make("base", "stories260K-f32.gguf")
    for name in ("Q2_K", "IQ4_NL", "MXFP4_MOE"):
        create(harness, from_="base", quantize=name)
        weights = made(harness).weights
        assert weights is not None and np.isfinite(logits_of(weights, PROMPT)).all(), name
