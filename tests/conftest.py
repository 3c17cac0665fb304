"""Fixtures for all tests: small real models, an empty home, scripted and real servers, an empty store.

A folder or a file overrides one of these only to add to it, or where its tests need another kind. What each test
double stands for is in support/README.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.chaos_registry import ChaosRegistry, chaos_registry
from support.fake_servers import EchoServer, ScriptedServer
from support.processes import children, command_line, until
from support.servers import RunningServer, standalone

from ollama_nb.store.store import Store

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs (`nohup make test &`) like this, and all child processes would inherit it: tests
    # that interrupt a program would wait forever.
    signal.signal(signal.SIGINT, signal.default_int_handler)

MODELS = Path(__file__).parent / "models"
settings.load_profile("ci")  # the same examples in every run, no clock; --hypothesis-profile=default draws others


@pytest.fixture(scope="module", autouse=True)
def no_process_outlives_its_file() -> Iterator[None]:
    """Fail the file whose tests leave a child process behind, not a later one."""
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


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server with scripted replies."""
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def echo_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EchoServer]:
    """A server whose model returns its question in capitals; clients find it through OLLAMA_HOST."""
    with EchoServer() as running:
        monkeypatch.setenv("OLLAMA_HOST", running.url)
        yield running


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The standalone server in a process of its own, with an empty store."""
    with standalone(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "models")


@pytest.fixture
def registry() -> Iterator[ChaosRegistry]:
    """An empty registry that can be made to misbehave."""
    with chaos_registry() as running:
        yield running
        running.released.set()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip uses in place of a package index; the user's own configuration does not count."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder
