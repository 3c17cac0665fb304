"""Create: from a model, from blobs, from the bundled one; what is refused before the first line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.service_harness import MODELS, PLAIN, ServiceHarness, collect

from ollama_nb.api.events import Progress
from ollama_nb.api.requests import CreateRequest
from ollama_nb.errors import OllamaError

ZERO = "sha256:" + "0" * 64


def create(harness: ServiceHarness, model: str = "new", **fields: Any) -> list[Progress]:
    return asyncio.run(collect(harness.service.create(CreateRequest(model=model, **fields))))


def statuses(lines: list[Progress]) -> list[str]:
    return [line.status.partition(" sha256:")[0] for line in lines]


def test_from_uploaded_blobs(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    digest = harness.service.blobs.add_file(MODELS / "stories260K-q8_0.gguf")
    lines = create(harness, files={"tiny.gguf": str(digest)}, template=PLAIN, parameters={"seed": 7})
    assert statuses(lines) == [
        "parsing GGUF",
        "using existing layer",
        "creating new layer",
        "creating new layer",
        "writing manifest",
        "success",
    ]
    (model,) = harness.service.store.models()
    assert (model.weights_digest, model.template, model.params) == (digest, PLAIN, {"seed": 7})


def test_from_a_model_with_changes(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("base", template=PLAIN, system="old", parameters={"top_k": 1, "seed": 2}, licenses=("A",))
    lines = create(harness, from_="BASE", system="new", parameters={"seed": 3}, licenses=("B",))
    assert statuses(lines)[-1] == "success"
    shown = asyncio.run(harness.service.show("new"))
    assert (shown.system, shown.license, shown.parent) == ("new", "A\nB", "base:latest")
    assert shown.model.params == {"top_k": 1, "seed": 3}


def test_over_an_old_one_unused_layers_go(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    create(harness, from_="sprout", system="first")
    before = set(harness.service.blobs.digests())
    create(harness, from_="sprout", system="second")
    gone = before - set(harness.service.blobs.digests())
    assert len(gone) >= 1
    assert asyncio.run(harness.service.show("new")).system == "second"
    careful = ServiceHarness(tmp_path, noprune=True)
    before = set(careful.service.blobs.digests())
    create(careful, from_="sprout", system="third")
    assert before < set(careful.service.blobs.digests())


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "a b", "from_": "base"}, 400, "invalid model name"),
        ({}, 400, "neither 'from' or 'files' was specified"),
        ({"files": {"/etc/x.gguf": ZERO}}, 400, "file path must be relative"),
        ({"files": {"../x.gguf": ZERO}}, 400, "file path must be relative"),
        ({"files": {"a//x.gguf": ZERO}}, 400, "file path must be relative"),
        ({"files": {"x.gguf": "sha256:12"}}, 400, "invalid digest format"),
        ({"files": {"x.gguf": ZERO}}, 404, f'blob "{ZERO}" not found'),
        ({"from_": "base", "adapters": {"../a": ZERO}}, 400, "file path must be relative"),
        ({"from_": "base", "template": "{{ if }}"}, 400, "template error: "),
        ({"from_": "base:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
        ({"from_": "a b"}, 400, "invalid model name"),
        ({"from_": "127.0.0.1:1/a/ghost"}, 500, "pull model manifest: cannot reach 127.0.0.1:1: Connection refused"),
        ({"from_": "pip://--index-url=x"}, 400, "invalid package reference"),
        ({"from_": "base", "quantize": "Q8_0"}, 400, "quantization is only supported for F16, BF16 and F32 models"),
        ({"from_": "base", "quantize": "Q9"}, 400, "unsupported quantization type Q9 - supported types are F32, F16"),
        ({"from_": "base", "quantize": "iq1_s"}, 400, "IQ1_S requires an importance matrix"),
        ({"from_": "base", "parameters": {"temperature": "hot"}}, 400, 'option "temperature" must be of type float32'),
        ({"from_": "base", "parameters": {"stop": "x"}}, 400, 'option "stop" must be of type array'),
        ({"from_": "base", "parameters": {"tempo": 1}, "strict": True}, 400, 'unknown option "tempo"'),
        ({"from_": "base", "ignored": ("ignored field",), "strict": True}, 400, "ignored field"),
        ({"from_": "base", "info": {"context_length": -1}}, 400, 'info field "context_length" must be a non-negative'),
    ],
)
def test_errors_change_nothing(tmp_path: Path, fields: dict[str, Any], status: int, message: str) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("base", template=PLAIN)
    before = harness.service.store.names()
    with pytest.raises(OllamaError) as caught:
        create(harness, **fields)
    assert (caught.value.status, caught.value.message[: len(message)]) == (status, message)
    assert harness.service.store.names() == before
    assert harness.service.requests.queue() == []


def test_unused_fields_are_reported_at_the_end(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("base", template=PLAIN)
    parameters = {"temprature": 0.5, "mirostat": 1, "top_k": 3}
    *lines, last = create(harness, from_="base", parameters=parameters, ignored=('ignored field "modelfile"',))
    assert not any(line.warnings for line in lines)
    assert last.status == "success" and last.warnings == (
        'ignored field "modelfile"',
        'unknown option "temprature", did you mean "temperature"?',
        'option "mirostat" is deprecated and has no effect',
    )
    assert create(harness, from_="base", parameters={"top_k": 3})[-1].warnings == ()


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("x.gguf", b"not at all", "supplied file was not in GGUF format"),
        ("x", b"not at all", "unknown type"),
        ("pytorch_model.bin", b"PK\x03\x04", "save the model as safetensors"),
        ("x", b"GGUF? no", ""),
    ],
)
def test_what_is_no_gguf(tmp_path: Path, path: str, data: bytes, message: str) -> None:
    harness = ServiceHarness(tmp_path)
    digest = str(harness.service.blobs.add(data))
    with pytest.raises(OllamaError) as caught:
        create(harness, files={path: digest})
    assert caught.value.status == 400
    assert message in caught.value.message
    assert harness.service.store.names() == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameters": {"stop": ["x"] * 300}}, "at most 256 stop strings of 8192 characters"),
        ({"parameters": {"stop": ["x" * 10_000]}}, "at most 256 stop strings of 8192 characters"),
        ({"parameters": {"repeat_penalty": 0}}, '"repeat_penalty" must be greater than 0'),
        ({"template": '{{ slice "abc" 5 9 }}'}, "template error: it renders no conversation"),
        ({"template": "{{ index .Messages 9 }}"}, "template error: it renders no conversation"),
    ],
)
def test_what_every_request_would_refuse(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("plain", template=PLAIN)
    with pytest.raises(OllamaError, match=message) as caught:
        create(harness, from_="plain", **fields)
    assert caught.value.status == 400
    assert [str(name) for name in harness.service.store.names()] == ["plain:latest"]
