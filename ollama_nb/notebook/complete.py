"""Tab completion on ``%ollama`` lines: commands, options, model names.

On such a line only our own completions are offered; the model list is asked for at most every few seconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from ollama_nb.errors import OllamaError
from ollama_nb.notebook.commands import COMMANDS, NAMES, Command
from ollama_nb.notebook.session import Session

_LINE = re.compile(r"^\s*(?:[\w.]+\s*=\s*)?%%?ollama\s+(.*)$", re.DOTALL)
KEEP_SECONDS = 3.0


class Completions:
    """What may stand at the cursor. ``models`` gives the names that are there."""

    def __init__(self, models: Callable[[], list[str]]) -> None:
        self._models = models

    def at(self, line: str, *, cell: bool = False) -> tuple[str, list[str], str] | None:
        """The fragment before the cursor, what it may become, and of which kind; None on a line that is not ours."""
        match = _LINE.match(line)
        if match is None:
            return None
        *before, fragment = re.split(r"\s+", match[1])
        if not before:
            kind, known = "command", [command.name for command in COMMANDS if command.cell or not cell]
        else:
            kind, known = self._after(before, fragment)
        return fragment, [word for word in known if word.startswith(fragment)], kind

    def _after(self, before: list[str], fragment: str) -> tuple[str, list[str]]:
        name, *words = before
        if name == "help":
            return "command", list(NAMES)
        if name not in NAMES:
            return "command", []
        command = NAMES[name]
        given, wants_value = _count(command, words)
        if wants_value:
            return "value", []
        if fragment.startswith("-"):
            return "option", [option.name for option in command.options]
        return "model", self._models() if given < command.models else []


def _count(command: Command, words: list[str]) -> tuple[int, bool]:
    """How many words that are no options were given, and whether the last option still waits for its value."""
    valued = {
        spelling
        for option in command.options
        if option.value and not option.optional
        for spelling in (option.name, option.short)
    }
    given, wants_value = 0, False
    for word in words:
        if wants_value:
            wants_value = False
        elif word.startswith("-"):
            wants_value = word in valued
        else:
            given += 1
    return given, wants_value


class ModelNames:
    """Names of the models that are there, remembered for a few seconds; empty where no server answers."""

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session, self._clock = session, clock
        self._names: list[str] = []
        self._asked: float | None = None

    def __call__(self) -> list[str]:
        now = self._clock()
        if self._asked is None or now - self._asked > KEEP_SECONDS:
            self._asked = now
            try:
                names = [str(model["name"]) for model in self._session.connect().list()["models"]]
            except OllamaError:
                names = []
            self._names = [name.removesuffix(":latest") for name in names]
        return self._names


def install(shell: InteractiveShell, session: Session) -> None:
    """Add the matcher to the shell's completer, in place of one that an earlier load added."""
    completions = Completions(ModelNames(session))

    @context_matcher()  # type: ignore[untyped-decorator]
    def ollama_matcher(context: CompletionContext) -> dict[str, Any]:
        found = completions.at(context.text_until_cursor, cell=context.full_text.lstrip().startswith("%%"))
        if found is None:
            return {"completions": [], "suppress": False}
        fragment, words, kind = found
        return {
            "completions": [SimpleCompletion(word, type=kind) for word in words],
            "matched_fragment": fragment,
            "suppress": True,
        }

    matchers = shell.Completer.custom_matchers
    matchers[:] = [matcher for matcher in matchers if getattr(matcher, "__name__", "") != ollama_matcher.__name__]
    matchers.append(ollama_matcher)
