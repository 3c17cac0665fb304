"""The reported cause of a child's end."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest
from support.aio import in_loop

from ollama_nb.runner import children, wire
from ollama_nb.runner.children import ChildLink, describe_exit

FAKE = (sys.executable, "-P", str(Path(__file__).parent.parent / "support" / "fake_runner.py"))

BUILD = "/tmp/pip-install-x/llama-cpp-python_1/vendor/llama.cpp/ggml/src/ggml-cpu/ops.cpp"


@pytest.mark.parametrize(
    ("code", "line", "expected"),
    [
        (-signal.SIGABRT, f"{BUILD}:4132: GGML_ASSERT(eps >= 0.0f) failed",
         "died by SIGABRT: GGML_ASSERT(eps >= 0.0f) failed (ops.cpp:4132)"),
        (-signal.SIGABRT, "../src/llama.cpp:7: fatal error", "died by SIGABRT: fatal error (llama.cpp:7)"),
        (-signal.SIGABRT, "terminate called without an active exception",
         "died by SIGABRT: terminate called without an active exception"),
        (-signal.SIGABRT, "", "died by SIGABRT"),
        (-signal.SIGSEGV, "ratio 1/2: 3", "died by SIGSEGV: ratio 1/2: 3"),
        (1, "ValueError: no", "exited with status 1: ValueError: no"),
    ],
)  # fmt: skip
def test_the_cause_names_no_path_of_the_build(code: int, line: str, expected: str) -> None:
    assert describe_exit(code, line) == expected


@in_loop
async def test_the_cause_of_an_exit_that_is_noticed_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that exits by itself is killed because its socket closed first; its return code is still reported."""
    monkeypatch.setattr("ollama_nb.runner.children.SETTLE", 0.0)
    killed, wait = threading.Event(), children.Child._wait
    monkeypatch.setattr(children.Child, "kill", lambda child: killed.set())
    monkeypatch.setattr(children.Child, "_wait", lambda child, drain: killed.wait(60) and wait(child, drain))
    link = await ChildLink.open(FAKE, wire.FromRunner, lambda message: None)
    link.send(wire.EngineConfig(path="exit:3:last words", n_ctx=1))
    end = await link.ended
    assert (end.cause, end.killed) == ("exited with status 3: last words", False)
