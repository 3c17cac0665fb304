"""The other words of ``%ollama``: models at rest and in memory, and the server itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ollama_nb import net
from ollama_nb.api.names import ModelName
from ollama_nb.api.units import byte_size
from ollama_nb.errors import BadRequest, NotFound, OllamaError
from ollama_nb.notebook import code, compare, making, mishap, opening, talk
from ollama_nb.notebook.display import follow
from ollama_nb.notebook.explain import nearest
from ollama_nb.notebook.inputs import MODEL_OPTIONS, model_options
from ollama_nb.notebook.parse import Line, Option
from ollama_nb.notebook.progress import Progress
from ollama_nb.notebook.session import Session
from ollama_nb.notebook.tables import Details, Text

MANY = 1_000
DEFAULT_MODEL = "-"
"""Stands for the model of ``%config OllamaMagics.model``."""


@dataclass(frozen=True, slots=True)
class Command:
    """One word of ``%ollama``. ``words`` set: that many words, then text; else between ``least`` and ``most`` words.

    ``models``: how many of its first words name models that are here. ``default``: the first of them may be left out.
    ``cell``: whether ``%%ollama`` takes it too; its first line then has up to ``most`` words. ``literal``: nothing is
    ever inserted into its cell. ``bare``: it means something without any model, too.
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
    default: bool = False
    bare: bool = False
    cell: bool = False
    literal: bool = False

    def count(self, *, cell: bool) -> tuple[int, int, int | None]:
        """Least and most words, and after how many the text begins (None: there is none)."""
        if self.words is None:
            return self.least, self.most, None
        if cell and self.most:
            return self.words, self.most, None
        return (0 if self.default else self.words), self.words, self.words


def pull(session: Session, line: Line, cell: str | None) -> None:
    model, name = line.words[0], line.get("--as") or ""
    client = session.connect()
    page = Progress(f"pulled `{name or model}`")
    fields: dict[str, Any] = {"as": name} if name else {}
    if (streams := line.get("--streams")) is not None:
        if not (streams.isascii() and streams.isdigit()):
            raise BadRequest(f"--streams needs a number, not `{streams}`")
        fields["streams"] = int(streams)
    fields |= _transfer_fields(line)
    follow(lambda: client.pull(model, **fields), page, session.screen())


def push(session: Session, line: Line, cell: str | None) -> None:
    model = line.words[0]
    client, page = session.connect(), Progress(f"pushed `{ModelName.parse(model).full}`")
    follow(lambda: client.push(model, **_transfer_fields(line)), page, session.screen())


def _transfer_fields(line: Line) -> dict[str, Any]:
    rate = {"max_rate": byte_size(line.get("--max-rate") or "")} if line.has("--max-rate") else {}
    return {"insecure": line.has("--insecure"), **rate}


def list_models(session: Session, line: Line, cell: str | None) -> Any:
    prefix = line.words[0].lower() if line.words else ""
    models = session.connect().list()["models"]
    return _listed(line, [model for model in models if model["name"].lower().startswith(prefix)], "Models")


def running(session: Session, line: Line, cell: str | None) -> Any:
    prefix = line.words[0] if line.words else ""
    models = session.connect().ps()["models"]
    return _listed(line, [model for model in models if model["name"].startswith(prefix)], "Running")


def _listed(line: Line, models: list[Mapping[str, Any]], kind: str) -> Any:
    if line.has("--json") and line.has("--quiet"):
        raise BadRequest("only one of '--quiet' or '--json' can be specified")
    if line.has("--json"):
        print(json.dumps({"models": models}, indent=2, ensure_ascii=False))
        return None
    if line.has("--quiet"):
        print("\n".join(model["name"] for model in models))
        return None
    # Tables are pandas DataFrames, which the other commands should not wait for.
    return getattr(import_module("ollama_nb.notebook.listing"), kind).of(models)


def embed(session: Session, line: Line, cell: str | None) -> Any:
    """The text's unit vector, float32."""
    text, output = talk.text_of(line, cell), talk.variable(line)
    if not text:
        raise BadRequest("no text: `%ollama embed MODEL your text`")
    dimensions = line.get("--dimensions") or "0"
    if not (dimensions.isascii() and dimensions.isdigit()):
        raise BadRequest(f"--dimensions needs a number, not `{dimensions}`")
    extras: dict[str, Any] = {"options": model_options(line, {})}
    if line.has("--keepalive"):
        extras["keep_alive"] = line.get("--keepalive")
    found = import_module("ollama_nb.client.ollama").Ollama(session.connect())  # with numpy, so not before it is needed
    cut = "truncate" if line.has("--truncate") else "error"
    vector = found.embed(line.words[0], text, dimensions=int(dimensions), on_overflow=cut, **extras)
    session.keep(("_ollama", output), vector)
    return vector


def show(session: Session, line: Line, cell: str | None) -> Details | Text:
    chosen = [part.name[2:] for part in SHOW[:-1] if line.has(part.name)]
    if len(chosen) > 1:
        names = "', '--".join(part.name[2:] for part in SHOW[:-2])
        raise BadRequest(f"only one of '--{names}', or '{SHOW[-2].name}' can be specified")
    verbose = line.has("--verbose")
    client = session.connect()
    shown = client.show(line.words[0], verbose=True) if verbose else client.show(line.words[0])
    if chosen:
        return Text(shown.get(chosen[0], ""))
    details = Details(shown)
    details.verbose = verbose
    return details


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
    """What another program on this machine needs to reach the same server: shown, or set in this kernel."""
    client = session.connect()
    wanted = {"OLLAMA_HOST": client.url} | ({"OLLAMA_API_KEY": client.key} if client.key else {})
    exceptions = net.no_proxy_for(net.LOOPBACK_HOSTS, os.environ)
    if exceptions is not None:  # curl would ask the proxy for this machine's own addresses
        wanted["NO_PROXY"] = exceptions
    if line.has("--set"):
        os.environ.update(wanted)
    told = [f"{name}={value}" for name, value in wanted.items() if name != "OLLAMA_API_KEY"]
    header = ""
    if client.key:
        told.append(f"OLLAMA_API_KEY={client.key if line.has('--show-key') else '…'}")
        header = ' -H "Authorization: Bearer $OLLAMA_API_KEY"'
    if client.key and not line.has("--show-key"):
        told.append("# `%ollama env --show-key` shows the key, `%ollama env --set` sets it here.")
    print("\n".join([*told, f'# curl{header} "$OLLAMA_HOST/api/tags"']))


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
        raise BadRequest(f"Unknown help topic `{line.words[0]}`{nearest(line.words[0], NAMES)}")


SHOW = (
    *(
        Option(f"--{part}", help=f"only its {part}")
        for part in ("license", "modelfile", "parameters", "system", "template")
    ),
    Option("--verbose", help="all that its file says, too", short="-v"),
)
_CHAT = (*talk.CHAT, *MODEL_OPTIONS)
_ASK = (*talk.ASK, *MODEL_OPTIONS)
_TELL = (*talk.ANSWER, *talk.HOW, *MODEL_OPTIONS)
_EMBED = (
    *talk.ANSWER,
    Option("--dimensions", "N", "only the first so many, scaled to length 1 again"),
    Option("--truncate", help="cut a text that is too long, instead of refusing it"),
    Option("--keepalive", "TIME", "how long the model stays loaded, such as 10m"),
    Option("--option", "NAME=VALUE", "any model option; may be repeated"),
    *MODEL_OPTIONS,
)
_INSECURE = Option("--insecure", help="allow plain HTTP to the registry")
_MAX_RATE = Option("--max-rate", "RATE", "most bytes a second, such as 5MB")
_PUSH = (_INSECURE, _MAX_RATE)
_LIST = (Option("--json", help="print the server's own words"), Option("--quiet", help="print names only", short="-q"))
_PULL = (
    Option("--as", "NAME", "its name here"),
    _INSECURE,
    _MAX_RATE,
    Option("--streams", "N", "parts of a file to fetch at a time"),
)
_CREATE = (
    Option("--file", "PATH", "a Modelfile instead of the cell", short="-f"),
    Option("--quantize", "TYPE", "type to quantize to, such as q4_K_M", short="-q"),
)
_ENV = (Option("--show-key", help="show the key, too"), Option("--set", help="set it in this kernel"))


def _talking(name: str, usage: str, help: str, act: Callable[[Session, Line, str | None], Any], **more: Any) -> Command:
    """A command that takes a model and a text, in the line or in the cell."""
    return Command(name, usage, help, act, **{"words": 1, "models": 1, "default": True, "cell": True, **more})


COMMANDS = (
    _talking("run", "run MODEL [PROMPT]", "ask one question; without one, open a chat", talk.run, options=_ASK),
    _talking("chat", "chat MODEL MESSAGE", "talk with a model; it remembers", talk.chat, options=_CHAT),
    _talking("generate", "generate MODEL PROMPT", "the same as run", talk.run, options=_ASK),
    _talking(
        "compare", "compare MODEL MODEL PROMPT", "ask models side by side; in a cell, up to six",
        compare.compare, options=_ASK, words=2, most=6, models=6, default=False,
    ),
    _talking("code", "code [MODEL PROMPT]", "an answer's code as a new cell", code.code, options=_TELL, bare=True),
    _talking("explain", "explain [MODEL]", "ask about the last error", mishap.explain, options=_TELL),
    _talking("embed", "embed MODEL TEXT", "a text as a vector", embed, options=_EMBED, default=False),
    Command("pull", "pull MODEL", "fetch a model", pull, _PULL, least=1, most=1),
    Command("push", "push MODEL", "send a model to a registry", push, _PUSH, least=1, most=1, models=1),
    Command("list", "list [PREFIX]", "models on this machine", list_models, _LIST, most=1),
    Command("ls", "ls [PREFIX]", "the same as list", list_models, _LIST, most=1),
    Command("ps", "ps [PREFIX]", "models in memory", running, _LIST, most=1),
    Command("show", "show MODEL", "what a model is", show, SHOW, least=1, most=1, models=1),
    Command("stop", "stop MODEL…", "take models out of memory", stop, least=1, most=MANY, models=MANY),
    Command("cp", "cp SOURCE DESTINATION", "give a model a second name", copy, least=2, most=2, models=1),
    Command("rm", "rm MODEL…", "delete models", remove, least=1, most=MANY, models=MANY),
    Command(
        "create", "create NAME", "make a model; the cell below is its Modelfile",
        making.create, _CREATE, least=1, most=1, cell=True, literal=True,
    ),
    Command("manager", "manager", "a widget: all models, pulled and deleted by hand", opening.manager),
    Command("activity", "activity", "a widget: what the server works on", opening.activity),
    Command("env", "env", "what other programs need to reach the server", environment, _ENV),
    Command("serve", "serve", "where the server is", serve),
    Command("version", "version", "the server's version", version),
    Command("help", "help [COMMAND]", "this text, or more about one command", show_help, most=1),
)  # fmt: skip
TERMINAL = ("df", "discover", "export", "fsck", "import", "keys", "outdated", "prune", "wheel")
"""Words of the command line that a notebook has not."""
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
            "In a cell MODEL may be left out, before a text it may be `-`: then it is the one of",
            "`%config OllamaMagics.model`, or the one asked last.",
            "Text is sent as it is; only {{name}} becomes the value of that variable.",
            "`%ollama help COMMAND` shows a command's options.",
        ]
    )


def explained(command: Command) -> str:
    lines = [f"{command.help[0].upper()}{command.help[1:]}.", "", f"  %ollama {command.usage}"]
    if command.cell:
        *words, last = command.usage.split()
        first_line = " ".join(words if len(words) > 1 else [*words, last])
        lines.append(f"  %%ollama {first_line}{']' if first_line.count('[') > first_line.count(']') else ''}")
    if command.options:
        width = max(len(option.spelled) for option in command.options)
        lines += ["", *(f"  {option.spelled.ljust(width)}    {option.help}" for option in command.options)]
    return "\n".join(lines)
