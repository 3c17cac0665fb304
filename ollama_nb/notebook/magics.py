"""``%ollama`` and ``%%ollama``: parse the line, insert variables, run the command, and show its errors as one line.

Importing this module is fast: what talks to servers is imported when the first command needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from traitlets import Bool, Dict, Unicode

from ollama_nb.errors import BadRequest, OllamaError
from ollama_nb.notebook import commands, complete, explain
from ollama_nb.notebook import line as lines
from ollama_nb.notebook.display import Interrupted
from ollama_nb.notebook.inputs import insert
from ollama_nb.notebook.line import Line, Option, parse_line
from ollama_nb.notebook.session import Defaults, MagicsSession

if TYPE_CHECKING:
    from ollama_nb.client.client import Client


def register(shell: InteractiveShell, connect: Callable[[], Client] | None = None) -> None:
    """Install the magics, their completion, the input transformers and the short tracebacks in the shell."""
    session = MagicsSession(shell, connect or _connect, connect or _find)
    shell.register_magics(OllamaMagics(session))
    lines.install(shell)
    explain.install()
    complete.install(shell, session)


def _connect() -> Client:
    from ollama_nb.client.connect import connect  # with the HTTP client, which `%load_ext` need not load

    return connect()


def _find() -> Client:
    from ollama_nb.client.connect import connect

    return connect(start=False)


@magics_class
class OllamaMagics(Magics):
    """The magics. ``%config OllamaMagics.NAME = …`` sets the default for commands that do not set NAME."""

    model = Unicode("", help="Model of commands that name none; `-` stands for it before a prompt.").tag(config=True)
    system = Unicode("", help="System message.").tag(config=True)
    think = Unicode("", help="Whether models think: true, false, low, medium, high or max.").tag(config=True)
    keep_alive = Unicode("", help="How long a model stays loaded, such as 10m.").tag(config=True)
    options = Dict(key_trait=Unicode(), help="Model options, such as {'temperature': 0}.").tag(config=True)
    stream = Bool(True, help="Show an answer while it streams in.").tag(config=True)

    def __init__(self, session: MagicsSession) -> None:
        super().__init__(session.shell)
        self._session = session

    @no_var_expand
    @line_cell_magic
    def ollama(self, line: str, cell: str | None = None) -> Any:
        """Language models in this notebook. `%ollama help` lists all commands."""
        self._session.asked = ()
        try:
            return self._run(line, cell)
        except OllamaError as error:
            raise UsageError(explain.explain(error, self._session.asked, self._installed)) from None
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None

    def _run(self, line: str, cell: str | None) -> Any:
        name, *rest = line.split(maxsplit=1)[:2] if line.strip() else [""]
        command = commands.NAMES.get(_ALIASES.get(name, name))
        if command is None or (cell is not None and not name):
            raise BadRequest(_unknown(name, cell=cell is not None))
        if cell is not None and not command.cell:
            raise BadRequest(f"`{name}` takes no cell; write `%ollama {command.usage}`")
        self._session.defaults = Defaults(
            self.model, self.system, self.think, self.keep_alive, self.options, self.stream
        )
        least, most, words = command.count(cell=cell is not None)
        parsed = parse_line("".join(rest), (*command.options, _HELP), words=words)
        if parsed.has(_HELP.name):
            return print(commands.command_help(command))
        if command.default:
            parsed = self._with_model(parsed, command)
        self._session.asked = parsed.words[: command.models]
        if not least <= len(parsed.words) <= most:
            raise BadRequest(_count(command, len(parsed.words)))
        if cell is not None and not command.literal:
            cell = insert(cell, self._session.variables)
        if parsed.stray:
            print(f"Note: {parsed.stray} is part of the text here; options go before it.", file=sys.stderr)
        return command.act(self._session, self._with_variables(parsed), cell)

    def _installed(self) -> list[str]:
        """The names of the installed models; empty if the server does not answer."""
        try:
            listed = self._session.find().list()["models"]
        except OllamaError:
            return []
        return [str(model["name"]).removesuffix(":latest") for model in listed]

    def _with_model(self, line: Line, command: commands.MagicCommand) -> Line:
        """Add the default model if the line names none. Raises BadRequest if there is no default."""
        if line.words and line.words[0] != commands.DEFAULT_MODEL:
            return line
        if model := self._session.model:
            return replace(line, words=(model, *line.words[1:]))
        if command.bare and not line.words:
            return line
        raise BadRequest(
            f"no model: write `%ollama {command.usage}`, or set a default: `%config OllamaMagics.model = 'NAME'`"
        )

    def _with_variables(self, line: Line) -> Line:
        """Insert variables after parsing, so that a value can never become an option."""

        def fill(text: str) -> str:
            return insert(text, self._session.variables)

        return replace(
            line,
            words=tuple(map(fill, line.words)),
            options={name: tuple(map(fill, values)) for name, values in line.options.items()},
            text=None if line.text is None else fill(line.text),
        )


_HELP = Option("--help", help="show help on this command", short="-h")
_ALIASES = {"": "help", "--help": "help", "-h": "help", "--version": "version", "-v": "version"}


def _unknown(name: str, *, cell: bool) -> str:
    if not name:
        return "no command: write `%%ollama chat MODEL` above a text; `%ollama help` lists all commands"
    if name in commands.TERMINAL:
        return f"`{name}` is a command of the terminal program: `!ollama {name}`"
    if near := explain.nearest(name, commands.NAMES):
        return f"unknown command `{name}`{near}; `%ollama help` lists all commands"
    example = f"`%%ollama chat {name}`" if cell else f"`%ollama run {name} PROMPT`"
    return f"unknown command `{name}`; if it is a model, write {example}; `%ollama help` lists all commands"


def _count(command: commands.MagicCommand, given: int) -> str:
    return f"`{command.name}` got {given} name{'s' * (given != 1)}; write `%ollama {command.usage}`"
