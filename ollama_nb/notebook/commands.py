"""The table of ``%ollama`` commands, and the commands about models and the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_nb import net
from ollama_nb.errors import BadRequest
from ollama_nb.notebook import assist, compare, talk, transfers, widgets
from ollama_nb.notebook.display import is_notebook
from ollama_nb.notebook.explain import nearest
from ollama_nb.notebook.inputs import MODEL_OPTIONS, model_options
from ollama_nb.notebook.line import Line, Option, shared_options
from ollama_nb.notebook.session import MagicsSession
from ollama_nb.notebook.tables import ModelDetails, PlainText
from ollama_nb.settings import anthropic_variables, openai_variables
from ollama_nb.verbs import actions
from ollama_nb.verbs.table import SHOW_PARTS, VERBS

MANY = 1_000  # no limit in practice
DEFAULT_MODEL = "-"
"""Stands for the model of ``%config OllamaMagics.model``."""


@dataclass(frozen=True, slots=True)
class MagicCommand:
    """One command of ``%ollama``.

    words: Number of words before the text; None for a command without text, which takes ``least`` to ``most`` words.
    models: How many of the first words name installed models.
    default: The first model may be left out.
    bare: The command also works without any model.
    cell: ``%%ollama`` accepts the command too; its first line has up to ``most`` words.
    literal: No variables are inserted into the cell.
    """

    name: str
    usage: str
    help: str
    act: Callable[[MagicsSession, Line, str | None], Any]
    options: tuple[Option, ...] = ()
    words: int | None = None
    least: int = 0
    most: int = 0
    models: int = 0
    default: bool = False
    bare: bool = False
    cell: bool = False
    literal: bool = False

    def count(self, *, cell: bool) -> tuple[int, int, int | None]:
        """Minimum and maximum of words, and the number of words before the text (None: there is no text)."""
        if self.words is None:
            return self.least, self.most, None
        if cell and self.most:
            return self.words, self.most, None
        return (0 if self.default else self.words), self.words, self.words


def list_models(session: MagicsSession, line: Line, cell: str | None) -> Any:
    return _listed(line, actions.list_models(session.connect(), *line.words), "models", "ModelsFrame")


def list_running(session: MagicsSession, line: Line, cell: str | None) -> Any:
    if line.has("--batches"):
        return _listed(line, actions.list_batches(session.connect(), *line.words), "batches", "BatchesFrame")
    return _listed(line, actions.list_running(session.connect(), *line.words), "models", "RunningFrame")


def _listed(line: Line, document: Mapping[str, Any], kind: str, frame: str) -> Any:
    """Display a document with a list of ``kind``, models or batches, as a DataFrame of the class ``frame``."""
    actions.check_output_flags(json=line.has("--json"), quiet=line.has("--quiet"))
    if line.has("--json"):
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return None
    if line.has("--quiet"):
        print("\n".join(entry["name" if kind == "models" else "id"] for entry in document[kind]))
        return None
    from ollama_nb.notebook import listing  # with pandas, which other commands need not load

    return getattr(listing, frame).of(document[kind])


def embed(session: MagicsSession, line: Line, cell: str | None) -> Any:
    """Embed a text. Returns its unit vector (float32)."""
    text, output = talk.text_of(line, cell), talk.output_variable(line)
    if not text:
        raise BadRequest("no text: `%ollama embed MODEL your text`")
    dimensions = line.get("--dimensions") or "0"
    if not (dimensions.isascii() and dimensions.isdigit()):
        raise BadRequest(f"--dimensions needs a number, not `{dimensions}`")
    extras: dict[str, Any] = {"options": model_options(line, {})}
    if line.has("--keepalive"):
        extras["keep_alive"] = line.get("--keepalive")
    from ollama_nb.client.ollama import Ollama  # with numpy, which other commands need not load

    vector = Ollama(session.connect()).embed(
        line.words[0],
        text,
        dimensions=int(dimensions),
        on_overflow="truncate" if line.has("--truncate") else "error",
        **extras,
    )
    session.keep(("_ollama", output), vector)
    return vector


def show(session: MagicsSession, line: Line, cell: str | None) -> ModelDetails | PlainText:
    parts = [part for part in SHOW_PARTS if line.has(f"--{part}")]
    actions.check_show_parts(parts)
    verbose = line.has("--verbose")
    shown = actions.show_model(session.connect(), line.words[0], verbose=verbose)
    if parts:
        return PlainText(shown.get(parts[0], ""))
    details = ModelDetails(shown)
    details.verbose = verbose
    return details


def stop(session: MagicsSession, line: Line, cell: str | None) -> None:
    client = session.connect()
    for model in line.words:
        actions.stop_model(client, model)


def copy(session: MagicsSession, line: Line, cell: str | None) -> None:
    source, destination = line.words
    session.connect().copy(source, destination)
    print(f"copied '{source}' to '{destination}'")


def remove(session: MagicsSession, line: Line, cell: str | None) -> None:
    actions.remove_models(session.connect(), line.words, report=print, warn=print)


def environment(session: MagicsSession, line: Line, cell: str | None) -> None:
    """Print the variables that other programs need to use the same server, or set them in this kernel.

    The variables of OpenAI's and Anthropic's clients are set by their options, and by nothing else: who has set a key
    of their own expects that it reaches its provider.
    """
    if line.has("--undo"):
        names = session.environment.undo()
        print(f"Put back: {', '.join(names)}" if names else "Nothing to undo: no variable was set here.")
        return
    client = session.connect()
    others = _client_variables(line, client.url, client.key)
    wanted = others or {"OLLAMA_HOST": client.url} | ({"OLLAMA_API_KEY": client.key} if client.key else {})
    exceptions = net.no_proxy_for(net.LOOPBACK_HOSTS, os.environ)
    if exceptions is not None:  # clients would send requests to local addresses to the proxy
        wanted["NO_PROXY"] = exceptions
    if others or line.has("--set"):
        replaced = [name for name in others if os.environ.get(name, wanted[name]) != wanted[name]]
        session.environment.set(wanted)
        if replaced:
            print(f"# Replaced in this kernel: {', '.join(replaced)}. `%ollama env --undo` puts them back.")
    shown = {
        name: "…" if value == client.key and not line.has("--show-key") else value for name, value in wanted.items()
    }
    lines = [f"{name}={value}" for name, value in shown.items()]
    if "…" in shown.values():
        set_them = "" if others else ", `%ollama env --set` sets it here"
        lines.append(f"# `%ollama env {' '.join([*line.options, '--show-key'])}` shows the key{set_them}.")
    if not others:
        header = ' -H "Authorization: Bearer $OLLAMA_API_KEY"' if client.key else ""
        lines.append(f'# curl{header} "$OLLAMA_HOST/api/tags"')
    print("\n".join(lines))


def _client_variables(line: Line, url: str, key: str) -> dict[str, str]:
    values: dict[str, str] = {}
    if line.has("--openai"):
        values |= openai_variables(url, key)
    if line.has("--anthropic"):
        values |= anthropic_variables(url, key)
    return values


def serve(session: MagicsSession, line: Line, cell: str | None) -> None:
    """Print the address of the server. In a notebook a server is found or started automatically."""
    client = session.connect()
    print(f"Serving at {client.url} (version {client.version()})")


def manager(session: MagicsSession, line: Line, cell: str | None) -> Any:
    """Open the model manager widget."""
    _check_notebook(session, "manager")
    return widgets.Models(session.connect)


def activity(session: MagicsSession, line: Line, cell: str | None) -> Any:
    """Open the activity widget."""
    _check_notebook(session, "activity")
    return widgets.Activity(session.connect)


def _check_notebook(session: MagicsSession, name: str) -> None:
    if not is_notebook(session.shell):
        raise BadRequest(f"`{name}` is a widget and needs a notebook; `%ollama list` and `%ollama ps` work anywhere")


def version(session: MagicsSession, line: Line, cell: str | None) -> None:
    print(f"ollama version is {session.connect().version()}")


def diagnose(session: MagicsSession, line: Line, cell: str | None) -> None:
    """Run ``ollama-nb doctor`` in a process with this kernel's environment, and print its report."""
    flags = ["--json"] if line.has("--json") else []
    flags += [f"--save={line.get('--save')}"] if line.has("--save") else []
    command = [sys.executable, "-P", "-m", "ollama_nb.cli.main", "doctor", *flags]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(done.stdout + done.stderr, end="")


def show_help(session: MagicsSession, line: Line, cell: str | None) -> None:
    if not line.words:
        print(overview())
    elif line.words[0] in NAMES:
        print(command_help(NAMES[line.words[0]]))
    else:
        raise BadRequest(f"Unknown help topic `{line.words[0]}`{nearest(line.words[0], NAMES)}")


_CHAT = (*talk.CHAT, *MODEL_OPTIONS)
_RUN = (*talk.RUN, *MODEL_OPTIONS)
_ASSIST = (*talk.OUTPUT, *talk.REQUEST, *MODEL_OPTIONS)
_EMBED = (
    *talk.OUTPUT,
    Option("--dimensions", "N", "shorten the vector to N dimensions, scaled to length 1 again"),
    Option("--truncate", help="cut a text that is too long instead of refusing it"),
    *shared_options("run", "--keepalive"),
    Option("--option", "NAME=VALUE", "any model option; may be repeated"),
    *MODEL_OPTIONS,
)
_PUSH, _SHOW, _LIST = shared_options("push"), shared_options("show"), shared_options("list")
_ENV = (
    Option("--show-key", help="show the API key"),
    Option("--set", help="set the variables in this kernel"),
    Option("--openai", help="set OPENAI_BASE_URL and OPENAI_API_KEY in this kernel"),
    Option("--anthropic", help="set ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY in this kernel"),
    Option("--undo", help="put back what was set in this kernel"),
)


def _text_command(
    name: str, usage: str, help: str, act: Callable[[MagicsSession, Line, str | None], Any], **more: Any
) -> MagicCommand:
    """A command that takes a model and a text, in the line or in the cell."""
    return MagicCommand(name, usage, help, act, **{"words": 1, "models": 1, "default": True, "cell": True, **more})


COMMANDS = (
    _text_command("run", "run MODEL [PROMPT]", "ask one question; without one, open a chat", talk.run, options=_RUN),
    _text_command("chat", "chat MODEL MESSAGE", "send a message to a conversation", talk.chat, options=_CHAT),
    _text_command("generate", "generate MODEL PROMPT", "the same as run", talk.run, options=_RUN),
    _text_command(
        "compare", "compare MODEL MODEL PROMPT", "ask models side by side; in a cell, up to six",
        compare.compare, options=_RUN, words=2, most=6, models=6, default=False,
    ),
    _text_command(
        "code", "code [MODEL PROMPT]", "put the code of an answer into a new cell",
        assist.code, options=_ASSIST, bare=True,
    ),
    _text_command("explain", "explain [MODEL]", "ask about the last error", assist.explain, options=_ASSIST),
    _text_command("embed", "embed MODEL TEXT", "embed a text as a vector", embed, options=_EMBED, default=False),
    MagicCommand("pull", "pull MODEL", "download a model", transfers.pull, shared_options("pull"), least=1, most=1),
    MagicCommand("push", "push MODEL", "upload a model", transfers.push, _PUSH, least=1, most=1, models=1),
    MagicCommand("list", "list [PREFIX]", "list the installed models", list_models, _LIST, most=1),
    MagicCommand("ls", "ls [PREFIX]", "the same as list", list_models, _LIST, most=1),
    MagicCommand("ps", "ps [PREFIX]", "list the models in memory", list_running, shared_options("ps"), most=1),
    MagicCommand("show", "show MODEL", "show information about a model", show, _SHOW, least=1, most=1, models=1),
    MagicCommand("stop", "stop MODEL…", "unload models from memory", stop, least=1, most=MANY, models=MANY),
    MagicCommand("cp", "cp SOURCE DESTINATION", "copy a model to another name", copy, least=2, most=2, models=1),
    MagicCommand("rm", "rm MODEL…", "delete models", remove, least=1, most=MANY, models=MANY),
    MagicCommand(
        "create", "create NAME", "create a model; the cell is its Modelfile",
        transfers.create, shared_options("create", "--file", "--quantize"), least=1, most=1, cell=True, literal=True,
    ),
    MagicCommand("manager", "manager", "open the model manager", manager),
    MagicCommand("activity", "activity", "open the live view of running requests", activity),
    MagicCommand("env", "env", "show the variables that other programs need to use the server", environment, _ENV),
    MagicCommand("serve", "serve", "show the address of the server", serve),
    MagicCommand("version", "version", "show the version of the server", version),
    MagicCommand("diagnose", "diagnose", "check the set-up of this kernel", diagnose, shared_options("doctor")),
    MagicCommand("doctor", "doctor", "the same as diagnose", diagnose, shared_options("doctor")),
    MagicCommand("help", "help [COMMAND]", "show this text, or help on one command", show_help, most=1),
)  # fmt: skip
NAMES = {command.name: command for command in COMMANDS}
TERMINAL = tuple(verb.name for verb in VERBS if verb.name not in NAMES)
"""Verbs of the terminal program that do not exist as magics."""


def overview() -> str:
    width = max(len(command.usage) for command in COMMANDS)
    lines = [f"  %ollama {command.usage.ljust(width)}    {command.help}" for command in COMMANDS]
    cells = ", ".join(f"%%ollama {command.name}" for command in COMMANDS if command.cell)
    return "\n".join(
        [
            "Language models in this notebook.",
            "",
            *lines,
            "",
            f"With the text in a cell: {cells}.",
            "MODEL may be left out in a cell, and may be `-` before a text: then it is the model of",
            "`%config OllamaMagics.model`, or the last one used.",
            "The text is sent as typed; only {{name}} is replaced by the value of that variable.",
            "`%ollama help COMMAND` shows the options of a command.",
        ]
    )


def command_help(command: MagicCommand) -> str:
    lines = [f"{command.help[0].upper()}{command.help[1:]}.", "", f"  %ollama {command.usage}"]
    if command.cell:
        *words, last = command.usage.split()
        first_line = " ".join(words if len(words) > 1 else [*words, last])
        lines.append(f"  %%ollama {first_line}{']' if first_line.count('[') > first_line.count(']') else ''}")
    if command.options:
        width = max(len(option.spelled) for option in command.options)
        lines += ["", *(f"  {option.spelled.ljust(width)}    {option.help}" for option in command.options)]
    return "\n".join(lines)
