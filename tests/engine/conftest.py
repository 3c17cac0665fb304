"""Engines and adapters that the tests of a file share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.engines import EXACT
from support.models import random_lora

from ollama_nb.engine.engine import Engine
from ollama_nb.engine.messages import Adapter, Adapters, EngineConfig
from ollama_nb.engine.prefix_cache import PrefixCache


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
    """The shared engine; after a test, no request may be left."""
    yield shared
    assert not shared.busy
    assert shared.counters["busy_slots"] == shared.counters["waiting"] == 0


@pytest.fixture(scope="module")
def q8_engine(models: Path) -> Iterator[Engine]:
    """Weights in 8 bits, for tests of formats."""
    engine = Engine(EngineConfig(path=str(models / "stories260K-q8_0.gguf"), n_ctx=512, n_seq=8, n_threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(path: str) -> Iterator[Engine]:
    """One sequence in full precision: the reference for everything that makes decoding faster."""
    engine = Engine(EngineConfig(path=path, n_seq=1, **EXACT))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def adapter_sets(path: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapters, ...]:
    """No adapter, one, another one, the first one at half strength, and both."""
    folder = tmp_path_factory.mktemp("lora")
    one, two = (Adapter(str(random_lora(Path(path), folder / f"{seed}.gguf", seed))) for seed in (1, 2))
    return (), (one,), (two,), (Adapter(one.path, 0.5),), (one, two)


@pytest.fixture
def free_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reading from disk free, so that a stored prefix is always used, on any machine."""
    monkeypatch.setattr("ollama_nb.engine.prefix_cache.READ_DELAY", 0.0)
    rate = property(lambda cache: math.inf, lambda cache, measured: None)
    monkeypatch.setattr(PrefixCache, "_read_rate", rate, raising=False)
