"""Names as clients write them, and the errors that they get."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.service_harness import BAD_NAME, ServiceHarness

from ollama_nb.api.models import ModelConfig
from ollama_nb.api.names import ModelName
from ollama_nb.errors import BadRequest, Forbidden, InvalidName, ModelNotFound, OllamaError
from ollama_nb.service.resolve import find, find_in, parse_reference
from ollama_nb.store.manifest import config_layer, encode_config


@pytest.mark.parametrize(
    ("text", "name", "cloud", "local"),
    [
        ("m", "m:latest", False, False),
        ("m:local", "m:latest", False, True),
        (" m:local\n", "m:latest", False, True),
        ("m:8b:LOCAL", "m:8b", False, True),
        ("m:cloud", "m:latest", True, False),
        ("m:8b:cloud", "m:8b", True, False),
        ("gpt-oss:20b-cloud", "gpt-oss:20b-cloud", True, False),
        ("ns/m-cloud", "ns/m-cloud:latest", False, False),
        ("host:5000/ns/m", "host:5000/ns/m:latest", False, False),
    ],
)
def test_source_suffixes(text: str, name: str, cloud: bool, local: bool) -> None:
    source = parse_reference(text)
    assert (source.name.short, source.cloud, source.local) == (name, cloud, local)


@pytest.mark.parametrize("text", ["m:cloud:local", "m:local:cloud", "m:8b-cloud:local"])
def test_contradicting_suffixes(text: str) -> None:
    with pytest.raises(BadRequest, match=f'use either :local or :cloud, not both: "{text}"'):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("no", ModelNotFound, "model 'no' not found"),
        ("No:Such", ModelNotFound, "model 'No:Such' not found"),
        ("a b", InvalidName, BAD_NAME),
        ("m@sha256:12", InvalidName, BAD_NAME.replace("a b", "m@sha256:12").replace('" "', '"@"')),
        (
            "../x",
            InvalidName,
            'invalid model name: ../x (the namespace part may hold only A-Z, a-z, 0-9, "_" and "-", not ".")',
        ),
        ("m:cloud", Forbidden, "ollama cloud is disabled: remote model is unavailable"),
    ],
)
def test_missing_models(tmp_path: Path, text: str, kind: type[OllamaError], message: str) -> None:
    backend = ServiceHarness(tmp_path).service._backend
    with pytest.raises(kind) as caught:
        asyncio.run(find(backend, text))
    assert caught.value.message == message


def test_case_does_not_matter(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("Story")
    assert asyncio.run(find(harness.service._backend, "sTORY:latest")).name.short == "Story:latest"


def test_stubs_of_remote_models(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    store = harness.service.store
    data = encode_config(ModelConfig(remote_host="https://ollama.com", remote_model="big"))
    store.write_manifest(ModelName("big"), config_layer(store.blobs.add(data), len(data)), ())
    for text, kind, message in (
        ("big", Forbidden, "ollama cloud is disabled: remote model is unavailable"),
        ("big:local", ModelNotFound, "model 'big:local' not found"),
    ):
        with pytest.raises(kind) as caught:
            asyncio.run(find(harness.service._backend, text))
        assert caught.value.message == message


def test_pinned_to_a_digest(tmp_path: Path) -> None:
    harness = ServiceHarness(tmp_path)
    harness.make("m")
    store = harness.service.store
    digest = store.resolve(ModelName("m")).digest
    assert find_in(store, f"m@sha256:{digest}").digest == digest
    assert find_in(store, f"m:latest@sha256:{digest}").name == ModelName("m")
    harness.make("m", system="changed")
    with pytest.raises(ModelNotFound, match=f"model 'm@sha256:{digest}' not found: 'm:latest' is sha256:"):
        find_in(store, f"m@sha256:{digest}")
    for text in ("m@sha256:12", f"m@{digest}", f"@sha256:{digest}", f"m@sha256:{digest}@sha256:{digest}"):
        with pytest.raises(InvalidName):
            find_in(store, text)
