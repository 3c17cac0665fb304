"""LoRA models over HTTP: they share a process with their base, and each replies as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.models import random_lora
from support.servers import RestClient, descendants, standalone

pytestmark = pytest.mark.model
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[RestClient]:
    """A base and two LoRA models of it."""
    folder = tmp_path_factory.mktemp("adapters")
    base = models / "stories260K-f32.gguf"
    env = {"OLLAMA_KV_CACHE_TYPE": "f32", "OLLAMA_FLASH_ATTENTION": "0", "OLLAMA_NUM_PARALLEL": "4"}
    with standalone(folder / "home", env=env) as found:
        answers = RestClient(found)
        weights = answers.add_blob(base.read_bytes())
        answers.create("base", files={"m.gguf": weights})
        for seed, name in ((1, "one"), (2, "two")):
            lora = answers.add_blob(random_lora(base, folder / f"{name}.gguf", seed).read_bytes())
            assert answers.create(name, **{"from": "base", "adapters": {"lora.gguf": lora}}) == "success"
        yield answers


def runners(server: RestClient) -> set[int]:
    command = b"ollama_nb.runner.child"
    return {pid for pid in descendants(server.pid) if command in Path(f"/proc/{pid}/cmdline").read_bytes()}


def loaded(server: RestClient) -> list[str]:
    (line,) = server.request("GET", "/api/ps", b"")[1]
    return sorted(model["name"] for model in line["models"])


def test_concurrent_replies_equal_replies_alone(rest: RestClient) -> None:
    names = ("base", "one", "two")
    alone = {}
    for name in names:
        alone[name] = rest.generate(name, PROMPT, draft_num_predict=0)
        rest.post("/api/generate", {"model": name, "keep_alive": 0})
    assert len(set(alone.values())) == 3
    assert loaded(rest) == []
    with ThreadPoolExecutor(6) as crowd:
        asked = [(name, crowd.submit(rest.generate, name, PROMPT)) for name in names * 4]
        assert [(name, reply.result()) for name, reply in asked] == [(name, alone[name]) for name, _ in asked]
    assert loaded(rest) == ["base:latest", "one:latest", "two:latest"]
    assert len(runners(rest)) == 1, "all three in one process"


def test_unloading_one_leaves_the_others(rest: RestClient) -> None:
    for name in ("base", "one"):
        rest.generate(name, PROMPT)
    before = runners(rest)
    rest.post("/api/generate", {"model": "one", "keep_alive": 0})
    assert "one:latest" not in loaded(rest) and "base:latest" in loaded(rest)
    assert runners(rest) == before


def test_an_adapter_of_another_architecture_is_refused(rest: RestClient, models: Path, tmp_path: Path) -> None:
    file = random_lora(models / "stories260K-f32.gguf", tmp_path / "lora.gguf", 3, architecture="qwen2")
    lora = rest.add_blob(file.read_bytes())
    assert rest.create("mismatch", **{"from": "base", "adapters": {"lora.gguf": lora}}) == "success"
    status, error = rest.fail("mismatch", PROMPT)
    assert status == 400
    assert lora.replace(":", "-") in error and 'made for the architecture "qwen2", the model is "llama"' in error
    assert rest.generate("base", PROMPT) != ""
