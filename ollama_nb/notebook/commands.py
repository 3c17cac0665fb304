"""The other words of ``%ollama``: models at rest and in memory, and the server itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ollama_nb.errors import BadRequest, NotFound, OllamaError
from ollama_nb.notebook import making, talk
from ollama_nb.notebook.display import follow, screen_for
from ollama_nb.notebook.parse import Line, Option
from ollama_nb.notebook.progress import Progress
from ollama_nb.notebook.session import Session
from ollama_nb.notebook.tables import Details, Table, Text, list_table, ps_table

MANY = 1_000


@dataclass(frozen=True, slots=True)
class Command:
    """One word of ``%ollama``. ``words`` set: that many words, then text; else between ``least`` and ``most`` words.

    ``models``: how many of its first words name models that are here. ``cell``: whether ``%%ollama`` takes it too.
    ``literal``: nothing is ever inserted into its cell.
    """

    name: str
    usage: str
    help: str
    act: Callable[[Session, Line, str | None], Any]
    options: tuple[Option, ...] = ()
    words: int | None = None
    least: int = 0
    most: int = 0
    models: int = 0
    cell: bool = False
    literal: bool = False


def pull(session: Session, line: Line, cell: str | None) -> None:
    model, name = line.words[0], line.get("--as") or ""
    client = session.connect()
    page = Progress(f"pulled `{name or model}`")
    fields = {"as": name} if name else {}
    follow(lambda: client.pull(model, insecure=line.has("--insecure"), **fields), page, screen_for(session.shell))


def list_models(session: Session, line: Line, cell: str | None) -> Table:
    prefix = line.words[0].lower() if line.words else ""
    models = session.connect().list()["models"]
    return list_table(model for model in models if model["name"].lower().startswith(prefix))


def running(session: Session, line: Line, cell: str | None) -> Table:
    prefix = line.words[0] if line.words else ""
    return ps_table(model for model in session.connect().ps()["models"] if model["name"].startswith(prefix))


def show(session: Session, line: Line, cell: str | None) -> Details | Text:
    chosen = [part.name[2:] for part in SHOW if line.has(part.name)]
    if len(chosen) > 1:
        names = "', '--".join(part.name[2:] for part in SHOW[:-1])
        raise BadRequest(f"only one of '--{names}', or '{SHOW[-1].name}' can be specified")
    shown = session.connect().show(line.words[0])
    return Text(shown.get(chosen[0], "")) if chosen else Details(shown)


def stop(session: Session, line: Line, cell: str | None) -> None:
    client = session.connect()
    for model in line.words:
        try:
            client.show(model)
        except NotFound:
            raise NotFound(f'couldn\'t find model "{model}" to stop') from None
        client.generate(model, stream=False, keep_alive=0)


def copy(session: Session, line: Line, cell: str | None) -> None:
    source, destination = line.words
    session.connect().copy(source, destination)
    print(f"copied '{source}' to '{destination}'")


def remove(session: Session, line: Line, cell: str | None) -> None:
    client = session.connect()
    for model in line.words:
        try:
            client.generate(model, stream=False, keep_alive=0)  # deleting alone would leave it in memory
        except NotFound:
            pass
        except OllamaError:
            print(f"Warning: unable to stop model '{model}'")
        client.delete(model)
        print(f"deleted '{model}'")


def environment(session: Session, line: Line, cell: str | None) -> None:
    """What another program on this machine needs to reach the same server."""
    client = session.connect()
    wanted = {"OLLAMA_HOST": client.url} | ({"OLLAMA_API_KEY": client.key} if client.key else {})
    if line.has("--set"):
        os.environ.update(wanted)
    if client.key and not line.has("--key"):
        wanted["OLLAMA_API_KEY"] = "…   # `%ollama env --key` shows it"
    print("\n".join(f"{name}={value}" for name, value in wanted.items()))


def serve(session: Session, line: Line, cell: str | None) -> None:
    """In a notebook a server is found or started by itself; say where it is."""
    client = session.connect()
    print(f"Serving at {client.url} (version {client.version()})")


def version(session: Session, line: Line, cell: str | None) -> None:
    print(f"ollama version is {session.connect().version()}")


def show_help(session: Session, line: Line, cell: str | None) -> None:
    if not line.words:
        print(overview())
    elif line.words[0] in NAMES:
        print(explained(NAMES[line.words[0]]))
    else:
        raise BadRequest(f"Unknown help topic `{line.words[0]}`")


SHOW = tuple(
    Option(f"--{part}", help=f"only its {part}")
    for part in ("license", "modelfile", "parameters", "system", "template")
)
_CHAT = (*talk.CHAT, *talk.MODEL_OPTIONS)
_ASK = (*talk.ASK, *talk.MODEL_OPTIONS)
COMMANDS = (
    Command("run", "run MODEL PROMPT", "ask a model one question", talk.run, _ASK, words=1, models=1, cell=True),
    Command(
        "chat", "chat MODEL MESSAGE", "talk with a model; it remembers", talk.chat, _CHAT, words=1, models=1, cell=True
    ),
    Command("generate", "generate MODEL PROMPT", "the same as run", talk.run, _ASK, words=1, models=1, cell=True),
    Command(
        "pull",
        "pull MODEL",
        "fetch a model",
        pull,
        (Option("--as", "NAME", "its name here"), Option("--insecure", help="allow plain HTTP to the registry")),
        least=1,
        most=1,
    ),
    Command("list", "list [PREFIX]", "models on this machine", list_models, most=1),
    Command("ls", "ls [PREFIX]", "the same as list", list_models, most=1),
    Command("ps", "ps [PREFIX]", "models in memory", running, most=1),
    Command("show", "show MODEL", "what a model is", show, SHOW, least=1, most=1, models=1),
    Command("stop", "stop MODEL…", "take models out of memory", stop, least=1, most=MANY, models=MANY),
    Command("cp", "cp SOURCE DESTINATION", "give a model a second name", copy, least=2, most=2, models=1),
    Command("rm", "rm MODEL…", "delete models", remove, least=1, most=MANY, models=MANY),
    Command(
        "create",
        "create NAME",
        "make a model; the cell below is its Modelfile",
        making.create,
        (
            Option("--file", "PATH", "a Modelfile instead of the cell", short="-f"),
            Option("--quantize", "TYPE", "type to quantize to, such as q4_K_M", short="-q"),
        ),
        least=1,
        most=1,
        cell=True,
        literal=True,
    ),
    Command(
        "env",
        "env",
        "what other programs need to reach the server",
        environment,
        (Option("--key", help="show the key, too"), Option("--set", help="set it in this kernel")),
    ),
    Command("serve", "serve", "where the server is", serve),
    Command("version", "version", "the server's version", version),
    Command("help", "help [COMMAND]", "this text, or more about one command", show_help, most=1),
)
NAMES = {command.name: command for command in COMMANDS}


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
            f"As a cell: {cells}; the text stands below.",
            "Text is sent as it is; only {{name}} becomes the value of that variable.",
            "`%ollama help COMMAND` shows a command's options.",
        ]
    )


def explained(command: Command) -> str:
    lines = [f"{command.help[0].upper()}{command.help[1:]}.", "", f"  %ollama {command.usage}"]
    if command.cell:
        lines.append(f"  %%ollama {' '.join(command.usage.split()[:2])}")
    if command.options:
        width = max(len(option.spelled) for option in command.options)
        lines += ["", *(f"  {option.spelled.ljust(width)}    {option.help}" for option in command.options)]
    return "\n".join(lines)
