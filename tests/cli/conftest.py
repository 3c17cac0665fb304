from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import RunCommand, command_runner
from support.fake_servers import ScriptedServer


@pytest.fixture
def ollama(
    server: ScriptedServer, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunCommand:
    """Runs command lines against the scripted server."""
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    return command_runner(monkeypatch, capsys)
