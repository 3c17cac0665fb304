"""Bodies of tags, show, ps and the queue."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ollama_nb.api.messages import Message
from ollama_nb.api.models import (
    GGUF,
    Layer,
    Listed,
    Manifest,
    Model,
    ModelConfig,
    Running,
    Shown,
    TensorInfo,
)  # fmt: skip
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.server.dialects import native_reply
from ollama_nb.service.requests import QueueEntry

EPSILON = 9.999999747378752e-06  # what a float32 of 1e-5 is as a double
HEX = "ab" * 32


def model(**more: Any) -> Model:
    config = ModelConfig(model_family="llama", model_families=None, model_type="260K", file_type="F32")
    manifest = Manifest(Layer("t", Digest(HEX), 1), ())
    return Model(ModelName("m"), HEX, manifest, config, 1_785_578_400.0, 42, **more)


def shown(gguf: GGUF | None, basename: str = "", **more: Any) -> Any:
    parts: dict[str, Any] = {
        "model": model(messages=(Message("user", "hi", thinking="hm"),)), "capabilities": ("completion",), "parent": "",
        "modelfile": "FROM x", "parameters": "", "template": "", "system": "", "license": "", "gguf": gguf,
    }  # fmt: skip
    return json.loads(native_reply.show(Shown(**{**parts, **more}), basename))


def test_tags() -> None:
    (entry,) = json.loads(native_reply.tags([Listed(model(), ("completion",), "base", 512)]))["models"]
    assert list(entry) == ["name", "model", "modified_at", "size", "digest", "details", "capabilities"]
    assert entry["details"] == {
        "parent_model": "base", "format": "gguf", "family": "llama", "families": None, "parameter_size": "260K",
        "quantization_level": "F32", "context_length": 512,
    }  # fmt: skip
    assert (entry["name"], entry["size"], entry["digest"]) == ("m:latest", 42, HEX)
    assert native_reply.tags([]) == b'{"models":[]}'


def test_ps_shows_the_latest_expiry_first() -> None:
    listed = [Running(model(), 10, 0, moment, 256, slots=8) for moment in (100.0, math.inf, 200.0)]
    found = json.loads(native_reply.ps(listed))["models"]
    assert [int(entry["expires_at"][:4]) > 2300 for entry in found] == [True, False, False]
    assert found[1]["expires_at"] > found[2]["expires_at"]
    assert list(found[0]) == [
        "name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length", "slots",
    ]  # fmt: skip
    assert found[0]["slots"] == 8


def test_show() -> None:
    metadata = {
        "general.architecture": "llama", "general.name": "hidden", "tokenizer.chat_template": "hidden",
        "llama.rope.freq_base": 10000.0, "llama.epsilon": EPSILON, "llama.odd": math.inf, "tokenizer.tokens": None,
        "tokenizer.empty": [], "b.bool": True,
    }  # fmt: skip
    found = shown(GGUF(3, metadata, (TensorInfo("t", "F32", (2, 3), 0),)))
    assert found["model_info"] == {
        "b.bool": True, "general.architecture": "llama", "general.parameter_count": 6, "llama.epsilon": 1e-05,
        "llama.odd": None, "llama.rope.freq_base": 10000, "tokenizer.empty": [], "tokenizer.tokens": None,
    }  # fmt: skip
    assert list(found["model_info"]) == sorted(found["model_info"])
    assert found["tensors"] == [{"name": "t", "type": "F32", "shape": [2, 3]}]
    assert found["messages"] == [{"role": "user", "content": "hi"}]
    assert list(found) == [
        "modelfile", "details", "messages", "model_info", "tensors", "capabilities", "modified_at",
    ]  # fmt: skip
    assert shown(None)["model_info"] == {} and "tensors" not in shown(None)
    assert shown(None, projector=GGUF(3, {"a": 1}, ()))["projector_info"] == {"a": 1, "general.parameter_count": 0}


def test_show_with_another_base_name() -> None:
    gguf = GGUF(3, {"general.architecture": "llama", "general.basename": "Llama"}, ())
    assert shown(gguf)["model_info"]["general.basename"] == "Llama"
    assert shown(gguf, basename="mine")["model_info"]["general.basename"] == "mine"


def test_a_whole_vocabulary() -> None:
    tokens = [f"<{n}>&\u2028" for n in range(1000)]
    scores = [0.1 if n % 2 else -3.5 for n in range(1000)]
    body = native_reply.show(
        Shown(model(), (), "", "", "", "", "", "", GGUF(3, {"tokens": tokens, "scores": scores, "types": [1] * 99}, ()))
    )
    assert b"<" not in body and b"\\u003c999\\u003e\\u0026\\u2028" in body
    found = json.loads(body)["model_info"]
    assert (found["tokens"], found["scores"], found["types"]) == (tokens, scores, [1] * 99)


@pytest.mark.parametrize(
    ("value", "text"),
    [(EPSILON, "0.00001"), (0.10000000149011612, "0.1"), (1e6, "1000000"), (0.1, "0.1"), (math.nan, "null"),
     (1e300, "1e+300"), (-0.5, "-0.5"), (0.0, "0"), (16777216.0, "16777216")],
)  # fmt: skip
def test_floats_of_a_file_are_short(value: float, text: str) -> None:
    metadata = {"x": value}
    body = native_reply.show(Shown(model(), (), "", "", "", "", "", "", GGUF(3, metadata, ())))
    assert f'"x":{text}}}'.encode() in body


def test_queue() -> None:
    entry = QueueEntry("r", "m", "chat", "generating", 0, 1.5, 3, 4, 5.25)
    (found,) = json.loads(native_reply.queue([entry]))["requests"]
    assert list(found) == [
        "id", "model", "kind", "state", "position", "created_at", "prompt_tokens", "output_tokens",
        "tokens_per_second",
    ]  # fmt: skip
    assert found["created_at"].startswith("19") and found["tokens_per_second"] == 5.25
    entry = QueueEntry("r", "m", "chat", "generating", 0, 1.5, 3, 4, 5.25, 6, 0)
    (found,) = json.loads(native_reply.queue([entry]))["requests"]
    assert (found["drafted_tokens"], found["accepted_tokens"]) == (6, 0)
