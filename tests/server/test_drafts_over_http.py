"""Models with a DRAFT over HTTP: replies do not change, and a draft model that does not match is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import RestClient, standalone

from ollama_nb.sprout import GGUF

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestClient]:
    with standalone(tmp_path_factory.mktemp("drafts"), env={"OLLAMA_KV_CACHE_TYPE": "f32"}) as found:
        yield RestClient(found)


def test_replies_are_the_same_with_a_draft_and_without(rest: RestClient, models: Path) -> None:
    weights = rest.add_blob((models / "stories260K-f32.gguf").read_bytes())
    draft = rest.add_blob((models / "stories260K-q8_0.gguf").read_bytes())
    assert rest.create("plain", files={"m.gguf": weights}) == "success"
    assert rest.create("drafted", files={"m.gguf": weights}, draft_files={"d.gguf": draft}) == "success"
    shown = rest.post("/api/show", {"model": "drafted"})
    assert f"DRAFT {rest.models / 'blobs' / draft.replace(':', '-')}" in shown["modelfile"]
    for options in ({}, {"temperature": 0.8, "seed": 5}, {"draft_num_predict": 0}):
        texts = [rest.generate(model, "Once upon a time", **options) for model in ("plain", "drafted")]
        assert texts[0] == texts[1] != ""


def test_a_draft_of_another_vocabulary_is_refused_with_the_reason(rest: RestClient, models: Path) -> None:
    weights = rest.add_blob((models / "stories260K-f32.gguf").read_bytes())
    draft = rest.add_blob(GGUF.read_bytes())
    refused = rest.create("mismatch", files={"m.gguf": weights}, draft_files={"d.gguf": draft})
    assert "the draft model cannot be used: its tokenizer has another type than the model's" in refused
    status, lines = rest.request("POST", "/api/show", b'{"model":"mismatch"}')
    assert status == 404, lines


def test_a_mismatched_draft_in_the_store_is_reported_and_can_be_disabled(rest: RestClient, models: Path) -> None:
    """Another program can have made such a model."""
    weights, fitting = (rest.add_blob((models / f"stories260K-{kind}.gguf").read_bytes()) for kind in ("f32", "q8_0"))
    draft = rest.add_blob(GGUF.read_bytes())
    assert rest.create("mismatch", files={"m.gguf": weights}, draft_files={"d.gguf": fitting}) == "success"
    manifest = rest.models / "manifests/registry.ollama.ai/library/mismatch/latest"
    manifest.write_text(manifest.read_text("utf-8").replace(fitting, draft), "utf-8")
    status, error = rest.fail("mismatch", "Once upon a time")
    assert status == 500 and "the draft model cannot be used: " in error and "draft_num_predict 0" in error
    assert rest.generate("mismatch", "Once upon a time", draft_num_predict=0).startswith(", there was")
