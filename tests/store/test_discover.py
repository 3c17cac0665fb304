"""Finding the models of other programs on this disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ggufs import gguf

from ollama_nb.api.names import ModelName
from ollama_nb.store.discover import discover

MODEL = gguf()


def put(path: Path, data: bytes = MODEL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def cached(home: Path, repository: str, file: str, revision: str = "abc") -> Path:
    """Create a file as in the Hugging Face cache: a link to a file in a folder of blobs."""
    folder = home / ".cache/huggingface/hub" / f"models--{repository.replace('/', '--')}"
    blob = put(folder / "blobs" / f"{abs(hash(file)):x}")
    link = folder / "snapshots" / revision / file
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(blob)
    return link


def found(home: Path, **env: str) -> dict[str, tuple[str, int]]:
    return {model.name: (model.source, model.size) for model in discover({"HOME": str(home), **env})}


def test_no_models(tmp_path: Path) -> None:
    assert found(tmp_path) == {}


def test_both_programs(tmp_path: Path) -> None:
    cached(tmp_path, "org/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf")
    cached(tmp_path, "org/Other-GGUF", "model.gguf")
    put(tmp_path / ".lmstudio/models/me/Thing-GGUF/Thing-IQ2_XS.gguf")
    put(tmp_path / ".cache/lm-studio/models/me/Old/old 你好.f16.GGUF")
    put(tmp_path / ".lmstudio/models/me/Thing-GGUF/readme.gguf", b"no model")
    assert found(tmp_path) == {
        "other:latest": ("Hugging Face", len(MODEL)),
        "smollm2-135m-instruct:q4_1": ("Hugging Face", len(MODEL)),
        "thing:iq2_xs": ("LM Studio", len(MODEL)),
        "old:f16": ("LM Studio", len(MODEL)),
    }
    assert all(ModelName.parse(name) for name in found(tmp_path))


def test_the_cache_folder_from_the_environment(tmp_path: Path) -> None:
    put(tmp_path / "a/models--o--n/snapshots/1/x.Q8_0.gguf")
    put(tmp_path / "b/hub/models--o--n/snapshots/1/y.Q8_0.gguf")
    assert set(found(tmp_path, HF_HUB_CACHE=str(tmp_path / "a"))) == {"x:q8_0"}
    assert set(found(tmp_path, HF_HOME=str(tmp_path / "b"))) == {"y:q8_0"}


def test_one_file_in_two_snapshots_is_one_model(tmp_path: Path) -> None:
    first = cached(tmp_path, "o/n", "x-Q4_0.gguf", "1")
    second = first.parent.parent / "2" / "x-Q4_0.gguf"
    second.parent.mkdir()
    second.symlink_to(first.resolve())
    assert set(found(tmp_path)) == {"x:q4_0"}


def test_two_models_with_the_same_name(tmp_path: Path) -> None:
    put(tmp_path / ".lmstudio/models/a/r/x-Q4_0.gguf")
    put(tmp_path / ".lmstudio/models/b/r/x-Q4_0.gguf", gguf(data=bytes(64)))
    assert set(found(tmp_path)) == {"x:q4_0", "x:q4_0-2"}


def test_a_split_model_needs_all_parts(tmp_path: Path) -> None:
    folder = tmp_path / ".lmstudio/models/a/r"
    put(folder / "big-Q4_K_M-00001-of-00003.gguf")
    put(folder / "big-Q4_K_M-00003-of-00003.gguf")
    assert found(tmp_path) == {}
    put(folder / "big-Q4_K_M-00002-of-00003.gguf")
    assert found(tmp_path) == {"big:q4_k_m": ("LM Studio", 3 * len(MODEL))}


def test_a_projector_belongs_to_the_model_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".lmstudio/models/a/r"
    put(folder / "sees-Q4_0.gguf")
    put(folder / "mmproj-sees-f16.gguf")
    (model,) = discover({"HOME": str(tmp_path)})
    assert [path.name for path in model.paths] == ["sees-Q4_0.gguf", "mmproj-sees-f16.gguf"]


@pytest.mark.parametrize("target", ["missing", "loop"])
def test_broken_links(tmp_path: Path, target: str) -> None:
    folder = tmp_path / ".lmstudio/models/a/r"
    folder.mkdir(parents=True)
    (folder / "x.gguf").symlink_to(folder / ("x.gguf" if target == "loop" else "none"))
    assert found(tmp_path) == {}
