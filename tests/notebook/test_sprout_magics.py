"""The magics with a real server and the bundled model: thinking, bound answers, history that outgrows the context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.servers import RunningServer, standalone

from ollama_nb import Client
from ollama_nb.notebook.magics import register

pytestmark = pytest.mark.model
FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with standalone(tmp_path_factory.mktemp("magics")) as found:
        yield found


@pytest.fixture
def magic(server: RunningServer, shell: InteractiveShell) -> Any:
    """Run a line or a cell; returns its answer."""
    register(shell, lambda: Client(server.url))

    def run(code: str) -> Any:
        result = shell.run_cell(code)
        if result.error_before_exec or result.error_in_exec:
            raise result.error_before_exec or result.error_in_exec  # type: ignore[misc]
        return shell.user_ns["_ollama"]

    return run


@pytest.mark.parametrize(("flags", "thinks"), [("", True), ("--think", True), ("--think=false", False)])
def test_thinking_on_off_and_absent(magic: Any, flags: str, thinks: bool) -> None:
    answer = magic(f"%ollama run sprout {flags} {FRANCE}")
    assert answer == "The capital of France is Paris."
    assert ("It is Paris." in answer.thinking) is thinks


def test_an_answer_bound_to_json(magic: Any) -> None:
    answer = magic(f"%ollama run sprout --format json --think=false {FRANCE} Answer in JSON.")
    assert isinstance(json.loads(answer), dict)


def test_a_cut_conversation_is_told(magic: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for at in range(6):
        answer = magic(f"%%ollama chat sprout --think=false --num-predict 4\n{f'I count {at}. ' * 35}")
    assert answer.stats.messages_dropped > 0
    assert "did not fit into the context of 1024 tokens" in "".join(capsys.readouterr())
