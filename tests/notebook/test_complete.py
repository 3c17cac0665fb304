"""Tab completion on ``%ollama`` lines, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from support.scripted_client import ScriptedClient

from ollama_nb.client import connect
from ollama_nb.errors import ConnectError
from ollama_nb.notebook import magics
from ollama_nb.notebook.complete import KEEP_SECONDS, Completions, ModelNames
from ollama_nb.notebook.magics import register
from ollama_nb.notebook.session import MagicsSession

MODELS = ["smollm2", "sprout", "hf.co/a/b:Q4"]


@pytest.mark.parametrize(
    ("line", "fragment", "words", "kind"),
    [
        ("%ollama pu", "pu", ["pull", "push"], "command"),
        ("r = %ollama ru", "ru", ["run"], "command"),
        ("%%ollama c", "c", ["chat", "compare", "code", "create"], "command"),
        ("%ollama run s", "s", ["smollm2", "sprout"], "model"),
        ("%ollama run hf.co/a/", "hf.co/a/", ["hf.co/a/b:Q4"], "model"),
        ("%%ollama chat --name x s", "s", ["smollm2", "sprout"], "model"),
        ("%ollama run -o ", "", [], "value"),
        ("%ollama run smollm2 --tem", "--tem", ["--temperature"], "option"),
        ("%ollama run smollm2 s", "s", [], "model"),
        ("%ollama rm sprout s", "s", ["smollm2", "sprout"], "model"),
        ("%ollama pull s", "s", [], "model"),
        ("%ollama help ch", "ch", ["chat"], "command"),
        ("%ollama nonsense s", "s", [], "command"),
        ("%ollama compare sprout s", "s", ["smollm2", "sprout"], "model"),
        ("%ollama run m --format ", "", ["json", "City", "picture"], "value"),
        ("%ollama run m --image p", "p", ["picture"], "value"),
        ("%ollama run m --format=C", "--format=C", ["--format=City"], "value"),
        ("%ollama run m --think=m", "--think=m", ["--think=medium", "--think=max"], "value"),
        ("%ollama run m --seed=1", "--seed=1", [], "option"),
        ("%%ollama chat m --tools ", "", ["area", "length"], "value"),
        ("%%ollama chat m --tools area,l", "area,l", ["area,length"], "value"),
        ("%%ollama chat m --tools=a", "--tools=a", ["--tools=area"], "value"),
        ("%%ollama chat m --tools area --tool-choice ", "", ["auto", "required", "none", "area", "length"], "value"),
    ],
)
def test_offers(line: str, fragment: str, words: list[str], kind: str) -> None:
    found = Completions(lambda: MODELS, lambda: ["City", "picture"], lambda: ["area", "length"]).at(
        line, cell=line.startswith("%%")
    )
    assert found == (fragment, words, kind)


@pytest.mark.parametrize("line", ["ollama run s", "%ollama", "print(%ollama run s", "%other run s", ""])
def test_other_lines(line: str) -> None:
    assert Completions(lambda: MODELS).at(line) is None


def test_the_shell_offers_only_our_completions(shell: InteractiveShell) -> None:
    register(shell, lambda: ScriptedClient(models=("smollm2:latest", "sprout:tiny")))
    register(shell, lambda: ScriptedClient(models=("smollm2:latest", "sprout:tiny")))
    line = "%ollama run s"
    with provisionalcompleter():
        offered = list(shell.Completer.completions(line, len(line)))
    assert [(found.text, line[: found.start]) for found in offered] == [
        ("smollm2", "%ollama run "),
        ("sprout:tiny", "%ollama run "),
    ]
    with provisionalcompleter():
        cell = "%%ollama chat sp\nhello"
        assert [found.text for found in shell.Completer.completions(cell, 16)] == ["sprout:tiny"]


def test_names_are_cached_for_a_few_seconds(shell: InteractiveShell) -> None:
    now, client = [0.0], ScriptedClient(models=("a:latest", "b:1"))
    names = ModelNames(MagicsSession(shell, lambda: client), lambda: now[0])
    assert names() == names() == ["a", "b:1"]
    assert len(client.asked) == 1
    now[0] = KEEP_SECONDS + 1
    client.models = ("c:latest",)
    assert names() == ["c"]


def test_no_server_means_no_names(shell: InteractiveShell) -> None:
    def connect() -> ScriptedClient:
        raise ConnectError("no server")

    assert ModelNames(MagicsSession(shell, connect))() == []


def test_completion_starts_no_server(shell: InteractiveShell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither do the suggestions of an error message."""

    def start(_: object) -> None:
        raise AssertionError("started a server")

    monkeypatch.setattr(connect, "start_background", start)
    monkeypatch.setattr(connect, "DEFAULT_PORT", 1)
    assert ModelNames(MagicsSession(shell, magics._connect, magics._find))() == []
    register(shell)
    names = shell.find_line_magic("ollama").__self__._installed()
    assert names == []
