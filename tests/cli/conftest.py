from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import Ollama, Result
from support.fake_servers import ScriptedServer

from ollama_nb.cli.main import main


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def ollama(
    server: ScriptedServer, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ollama:
    """Run a command line against the scripted server; nothing is a terminal."""
    monkeypatch.setenv("OLLAMA_HOST", server.url)

    def run(*args: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(args)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
