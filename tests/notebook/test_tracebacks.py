"""The traceback of an OllamaError in a cell shows the cell and the error, without the frames of this package."""

from __future__ import annotations

import re
import sys
import traceback

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.scripted_client import ScriptedClient

from ollama_nb.notebook.magics import register

CELL = """
import ollama_nb
def ask_for(city):
    return ollama_nb.Ollama(ollama_nb.Client("http://127.0.0.1:9")).ask("m", city)
ask_for("")
"""


def test_only_the_cell_and_the_error_are_shown(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    register(shell, ScriptedClient)
    error = shell.run_cell(CELL).error_in_exec
    output = re.sub(r"\x1b\[[\d;]*m", "", "".join(capsys.readouterr()))
    assert "BadRequest" in output and "no prompt: there is nothing to ask" in output
    assert 'ask_for("")' in output and '.ask("m", city)' in output
    assert "question.py" not in output and "ollama.py" not in output
    assert sys.last_value is error
    assert "question.py" in "".join(traceback.format_exception(error))


def test_internal_causes_are_not_shown(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    register(shell, ScriptedClient)
    error = shell.run_cell("import ollama_nb\nollama_nb.connect('127.0.0.1:9')").error_in_exec
    output = "".join(capsys.readouterr())
    assert "could not connect to ollama server" in output and "ConnectionRefusedError" not in output
    assert isinstance(error.__cause__, ConnectionRefusedError)


def test_other_errors_are_shown_as_usual(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    register(shell, ScriptedClient)
    shell.run_cell("import json\njson.loads('{')")
    output = "".join(capsys.readouterr())
    assert "JSONDecodeError" in output and "decoder.py" in output
