"""Tab completion on ``%ollama`` lines: commands, options, values, and the names of models, variables and functions.

IPython's own completions are suppressed on these lines. The model list is cached for a few seconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from inspect import isroutine
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from ollama_nb.errors import OllamaError
from ollama_nb.notebook.commands import COMMANDS, NAMES, MagicCommand
from ollama_nb.notebook.session import MagicsSession

_LINE = re.compile(r"^\s*(?:[\w.]+\s*=\s*)?%%?ollama\s+(.*)$", re.DOTALL)
KEEP_SECONDS = 3.0  # how long the model list is cached
_VALUES = {
    "--format": ("json",),
    "--think": ("true", "false", "low", "medium", "high", "max"),
    "--tool-choice": ("auto", "required", "none"),
}
_NAMES_VARIABLES = ("--format", "--image")


class Completions:
    """The completions at a cursor. The callables return the names of models, variables and functions."""

    def __init__(
        self,
        models: Callable[[], list[str]],
        variables: Callable[[], list[str]] = list,
        functions: Callable[[], list[str]] = list,
    ) -> None:
        self._models, self._variables, self._functions = models, variables, functions

    def at(self, line: str, *, cell: bool = False) -> tuple[str, list[str], str] | None:
        """The fragment before the cursor, its completions and their kind; None unless it is an ``%ollama`` line."""
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
        given, waiting = _count(command, words)
        if waiting:
            return "value", self._values(waiting, fragment)
        option, equals, value = fragment.partition("=")
        if equals and (values := self._values(option, value)):
            return "value", [f"{option}={value}" for value in values]
        if fragment.startswith("-"):
            return "option", [option.name for option in command.options]
        return "model", self._models() if given < command.models else []

    def _values(self, option: str, fragment: str) -> list[str]:
        """The values of an option: fixed words, and variables if the option takes names of variables."""
        if option == "--tools":  # a comma-separated list of names
            before = fragment[: fragment.rfind(",") + 1]
            return [f"{before}{name}" for name in self._functions() if name not in before.split(",")]
        known = _VALUES.get(option, ())
        if option == "--tool-choice":
            return [*known, *self._functions()]
        return [*known, *self._variables()] if option in _NAMES_VARIABLES else [*known]


def _count(command: MagicCommand, words: list[str]) -> tuple[int, str]:
    """The number of words that are not options, and the last option if its value is missing."""
    valued = {
        spelling
        for option in command.options
        if option.value and not option.optional
        for spelling in (option.name, option.short)
    }
    given, waiting = 0, ""
    for word in words:
        if waiting:
            waiting = ""
        elif word.startswith("-"):
            waiting = word if word in valued else ""
        else:
            given += 1
    return given, waiting


class ModelNames:
    """The names of the installed models, cached for a few seconds; empty if no server runs. None is started."""

    def __init__(self, session: MagicsSession, clock: Callable[[], float] = time.monotonic) -> None:
        self._session, self._clock = session, clock
        self._names: list[str] = []
        self._asked: float | None = None

    def __call__(self) -> list[str]:
        now = self._clock()
        if self._asked is None or now - self._asked > KEEP_SECONDS:
            self._asked = now
            try:
                names = [str(model["name"]) for model in self._session.find().list()["models"]]
            except OllamaError:
                names = []
            self._names = [name.removesuffix(":latest") for name in names]
        return self._names


def install(shell: InteractiveShell, session: MagicsSession) -> None:
    """Add the matcher to the shell's completer, replacing the one of an earlier load."""

    def variables() -> list[str]:
        hidden = session.shell.user_ns_hidden
        return [name for name in session.variables if not name.startswith("_") and name not in hidden]

    def functions() -> list[str]:
        return [name for name in variables() if isroutine(session.variables[name])]

    completions = Completions(ModelNames(session), variables, functions)

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
