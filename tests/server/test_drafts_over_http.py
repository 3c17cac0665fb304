"""A model with a DRAFT, made and asked over HTTP: it says what it says without, and a misfit is explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.requests import Answers
from support.servers import standalone

from ollama_nb.sprout import GGUF

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    with standalone(tmp_path_factory.mktemp("drafts"), env={"OLLAMA_KV_CACHE_TYPE": "f32"}) as found:
        yield Answers(found)


def test_replies_are_the_same_with_a_draft_and_without(server: Answers, models: Path) -> None:
    weights = server.add_blob((models / "stories260K-f32.gguf").read_bytes())
    draft = server.add_blob((models / "stories260K-q8_0.gguf").read_bytes())
    assert server.create("plain", files={"m.gguf": weights}) == "success"
    assert server.create("drafted", files={"m.gguf": weights}, draft_files={"d.gguf": draft}) == "success"
    shown = server.post("/api/show", {"model": "drafted"})
    assert f"DRAFT {server.models / 'blobs' / draft.replace(':', '-')}" in shown["modelfile"]
    for options in ({}, {"temperature": 0.8, "seed": 5}, {"draft_num_predict": 0}):
        texts = [server.generate(model, "Once upon a time", **options) for model in ("plain", "drafted")]
        assert texts[0] == texts[1] != ""


def test_a_draft_of_another_vocabulary_is_explained_and_can_be_switched_off(server: Answers, models: Path) -> None:
    weights = server.add_blob((models / "stories260K-f32.gguf").read_bytes())
    draft = server.add_blob(GGUF.read_bytes())
    assert server.create("misfit", files={"m.gguf": weights}, draft_files={"d.gguf": draft}) == "success"
    status, error = server.fail("misfit", "Once upon a time")
    assert status == 500 and "the draft model cannot be used: " in error and "draft_num_predict 0" in error
    assert server.generate("misfit", "Once upon a time", draft_num_predict=0).startswith(", there was")
