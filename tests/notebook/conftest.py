"""A shell in this process: as a terminal, or as a kernel whose displays are recorded."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


@pytest.fixture
def shell(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A terminal shell, the only one in this process during a test."""
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    yield shell
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()
    InteractiveShell.clear_instance()


@pytest.fixture
def displays(shell: InteractiveShell) -> list[dict[str, Any]]:
    """Make the shell look like a kernel and record its displays."""
    shell.kernel = SimpleNamespace()  # type: ignore[attr-defined]
    shell.display_pub = CapturingDisplayPublisher()
    return shell.display_pub.outputs  # type: ignore[no-any-return]
