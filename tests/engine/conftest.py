"""The engine that tests of a file share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_nb.engine.config import EngineConfig
from ollama_nb.engine.engine import Engine
from ollama_nb.engine.prefix_keeper import PrefixKeeper


@pytest.fixture(scope="module")
def path(models: Path) -> str:
    return str(models / "stories260K-f32.gguf")


@pytest.fixture(scope="module")
def shared(path: str) -> Iterator[Engine]:
    engine = Engine(EngineConfig(path=path, n_ctx=512, n_seq=8, n_threads=1))
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    """Whatever a test does, nothing may be left running."""
    yield shared
    assert not shared.busy
    assert shared.counters["busy_slots"] == shared.counters["waiting"] == 0


@pytest.fixture
def free_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes no time: a prefix on disk is used, however fast a machine computes and however slow it reads."""
    monkeypatch.setattr("ollama_nb.engine.prefix.READ_DELAY", 0.0)
    rate = property(lambda keeper: math.inf, lambda keeper, measured: None)
    monkeypatch.setattr(PrefixKeeper, "_rate", rate, raising=False)
