"""Shell completion, generated from the table of verbs."""

from __future__ import annotations

import pytest
from support.command_line import RunCommand

from ollama_nb.cli.completion import make_app
from ollama_nb.verbs.table import BY_NAME


def test_every_verb_can_be_completed() -> None:
    names = {info.name for info in make_app().registered_commands}
    assert names >= {*BY_NAME, "ls", "start"}


@pytest.mark.parametrize(
    ("line", "expected"), [("ollama pu", ["pull", "push"]), ("ollama pull --s", ["--streams"]), ("ollama xyz", [])]
)
def test_a_shell_asks_for_completions(
    ollama: RunCommand, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    monkeypatch.setenv("_OLLAMA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    monkeypatch.setattr("sys.argv", ["/usr/bin/ollama"])
    assert ollama().out.split() == expected


def test_the_script_can_be_shown(ollama: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/ollama"])
    # Typer looks for the user's shell among the parent processes; without it, the shell is named.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert "_OLLAMA_COMPLETE=complete_bash" in ollama("--show-completion", "bash").out
