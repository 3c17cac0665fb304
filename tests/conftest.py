"""Fixtures for all tests: small real models, an empty home, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.processes import children, command_line, until

MODELS = Path(__file__).parent / "models"
settings.load_profile("ci")  # the same examples in every run, no clock; --hypothesis-profile=default draws others


@pytest.fixture(scope="module", autouse=True)
def no_process_outlives_its_file() -> Iterator[None]:
    """Tests that leave a child of this process behind fail themselves; none that comes later finds it."""
    before = children()
    yield
    with contextlib.suppress(AssertionError):
        until(lambda: children() <= before)
    left = {pid: command_line(pid) or "a zombie" for pid in children() - before}
    assert not left, f"left behind by a test of this file: {left}"


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of small real GGUF models."""
    return MODELS


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """Expected tokens, texts and vectors, computed without llama.cpp."""
    return json.loads((MODELS / "reference.json").read_text("utf-8"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty HOME with no OLLAMA_* or Jupyter variable set."""
    for name in list(os.environ):
        if name.startswith(("OLLAMA", "JPY_", "JUPYTER")):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("OLLAMA_NB_EXTRA_MODELS", "")  # a system Ollama's models are not ours to test
    yield folder
