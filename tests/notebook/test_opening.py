"""Commands that open widgets."""

from __future__ import annotations

from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.scripted_client import ScriptedClient

from ollama_nb.notebook.magics import register
from ollama_nb.notebook.widgets import Activity, Chat, Models


@pytest.fixture
def notebook(shell: InteractiveShell, displays: list[Any]) -> InteractiveShell:
    register(shell, ScriptedClient)
    return shell


@pytest.mark.parametrize(
    ("line", "kind"), [("run smollm2", Chat), ("generate m", Chat), ("manager", Models), ("activity", Activity)]
)
def test_widgets(notebook: InteractiveShell, line: str, kind: type) -> None:
    assert notebook.run_cell(f"w = %ollama {line}").success
    assert isinstance(notebook.user_ns["w"], kind)


def test_a_chat_uses_the_settings_of_the_line(notebook: InteractiveShell) -> None:
    notebook.run_cell("%config OllamaMagics.model = 'small'")
    notebook.run_cell("%config OllamaMagics.options = {'num_ctx': 2048, 'seed': 1}")
    assert notebook.run_cell("w = %ollama run --temperature 0.5 --system 'Be brief.' --think=low --format json").success
    chat = notebook.user_ns["w"]
    settings = chat._chat.settings
    assert chat.model == "small"
    assert (settings.system, settings.temperature, settings.num_ctx) == ("Be brief.", 0.5, 2048)
    assert (settings.think, settings.format) == ("low", "json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run m --seed 1", "the chat widget has no setting for `--seed`"),
        ("run m --think=deep", "think"),
        ("manager now", "`manager` got 1 name; write `%ollama manager`"),
    ],
)
def test_options_that_a_chat_does_not_have(
    notebook: InteractiveShell, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert notebook.run_cell(f"%ollama {line}").error_in_exec
    assert message in "".join(capsys.readouterr())


@pytest.mark.parametrize("line", ["manager", "activity", "run m"])
def test_a_terminal_has_no_widgets(shell: InteractiveShell, capsys: pytest.CaptureFixture[str], line: str) -> None:
    register(shell, ScriptedClient)
    assert shell.run_cell(f"%ollama {line}").error_in_exec
    assert "needs a notebook" in "".join(capsys.readouterr())
