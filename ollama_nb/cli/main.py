"""The `ollama` program: its commands and their flags. The one lazy door: a command's module is imported when it runs.

Errors are one line on standard error and exit code 1, without usage text.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ollama_nb.cli import argv as cobra
from ollama_nb.cli import describe
from ollama_nb.errors import BadRequest, OllamaError

if TYPE_CHECKING:
    from ollama_nb.cli.talk import Talk

app = typer.Typer(
    name="ollama",
    help="Large language model runner",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=False,
)
ALIASES = {"start": "serve", "ls": "list", "login": "signin", "logout": "signout"}
HIDDEN_ALIASES = {"login", "logout"}

Model = Annotated[str, typer.Argument(metavar="MODEL")]
Prefix = Annotated[list[str] | None, typer.Argument(metavar="[PREFIX]")]
Json = Annotated[bool, typer.Option("--json", help="Print the server's JSON document")]
PrintJson = Annotated[bool, typer.Option("--json", help="Print a JSON document")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the names")]
MaxRate = Annotated[str, typer.Option("--max-rate", help="Most bytes a second (e.g. 5MB)")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Use an insecure registry")]


@app.command(help="Start Ollama")
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on, written as OLLAMA_HOST is")] = "",
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on (0: any free one)")] = None,
) -> int:
    from ollama_nb.cli.serve import serve as run_server

    return run_server(host, port)


@app.command(help="Create a model")
def create(
    model: Model,
    file: Annotated[str, typer.Option("--file", "-f", help='Name of the Modelfile (default "Modelfile")')] = "",
    quantize: Annotated[str, typer.Option("--quantize", "-q", help="Quantize model to this level (e.g. q4_K_M)")] = "",
    draft_quantize: Annotated[str, typer.Option("--draft-quantize", help="Quantize draft model to this level")] = "",
    link: Annotated[bool, typer.Option("--link", help="Take files by hard links, without a copy")] = False,
) -> None:
    from ollama_nb.cli.create import create_model

    create_model(model, file, quantize, draft_quantize=draft_quantize, link=link)


@app.command(help="Show information for a model")
def show(
    model: Model,
    license: Annotated[bool, typer.Option("--license", help="Show license of a model")] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Show Modelfile of a model")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Show parameters of a model")] = False,
    template: Annotated[bool, typer.Option("--template", help="Show template of a model")] = False,
    system: Annotated[bool, typer.Option("--system", help="Show system message of a model")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show detailed model information")] = False,
) -> None:
    from ollama_nb.cli.show import show_model

    chosen = {"license": license, "modelfile": modelfile, "parameters": parameters, "system": system}
    show_model(model, [name for name, wanted in {**chosen, "template": template}.items() if wanted], verbose)


@app.command(help="Run a model")
def run(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]")] = None,
    keepalive: Annotated[str, typer.Option("--keepalive", help="Duration to keep a model loaded (e.g. 5m)")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show timings for response")] = False,
    insecure: Insecure = False,
    nowordwrap: Annotated[bool, typer.Option("--nowordwrap", help="Don't wrap words to the next line")] = False,
    format: Annotated[str, typer.Option("--format", help="Response format (e.g. json)")] = "",
    think: Annotated[
        str | None, typer.Option("--think", help="Thinking: true, false, high, medium, low or max (--think=low)")
    ] = None,
    hidethinking: Annotated[bool, typer.Option("--hidethinking", help="Hide thinking output (if provided)")] = False,
    truncate: Annotated[
        bool | None,
        typer.Option("--truncate", help="For embedding models: cut too long inputs (default true)"),
    ] = None,
    dimensions: Annotated[int, typer.Option("--dimensions", help="For embedding models: length of the vectors")] = 0,
) -> None:
    from ollama_nb.cli.run import Wish, run_model

    wish = Wish(
        model=model,
        pieces=tuple(prompt or ()),
        keepalive=keepalive,
        verbose=verbose,
        insecure=insecure,
        wordwrap=not nowordwrap,
        format=format,
        think=think,
        hidethinking=hidethinking,
        truncate=truncate,
        dimensions=dimensions,
    )
    run_model(wish, _converse)


@app.command(help="Stop a running model")
def stop(model: Model) -> None:
    from ollama_nb.cli.manage import stop_model

    stop_model(model)


@app.command(help="Pull a model from a registry")
def pull(
    model: Model,
    as_: Annotated[str, typer.Option("--as", help="Local name to give to the model")] = "",
    insecure: Insecure = False,
    max_rate: MaxRate = "",
    streams: Annotated[int, typer.Option("--streams", help="Parts of a file to fetch at a time (default 4)")] = 0,
) -> None:
    from ollama_nb.cli.transfer import pull_model

    pull_model(model, as_=as_, insecure=insecure, max_rate=max_rate, streams=streams)


@app.command(help="Push a model to a registry")
def push(model: Model, insecure: Insecure = False, max_rate: MaxRate = "") -> None:
    from ollama_nb.cli.transfer import push_model

    push_model(model, insecure=insecure, max_rate=max_rate)


@app.command(help="Sign in to ollama.com")
def signin() -> None:
    raise OllamaError(
        "cloud accounts are not supported: models run on this machine only, there is nothing to sign in to"
    )


@app.command(help="Sign out from ollama.com")
def signout() -> None:
    raise OllamaError("cloud accounts are not supported: there is no account to sign out from")


@app.command(name="list", help="List models")
def list_(prefix: Prefix = None, json: Json = False, quiet: Quiet = False) -> None:
    from ollama_nb.cli.listing import list_models

    list_models((prefix or [""])[0], json=json, quiet=quiet)


@app.command(help="List running models")
def ps(prefix: Prefix = None, json: Json = False, quiet: Quiet = False) -> None:
    from ollama_nb.cli.listing import list_running

    list_running((prefix or [""])[0], json=json, quiet=quiet)


@app.command(help="Copy a model")
def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION")],
) -> None:
    from ollama_nb.cli.manage import copy_model

    copy_model(source, destination)


@app.command(help="Remove a model")
def rm(models: Annotated[list[str], typer.Argument(metavar="MODEL [MODEL...]")]) -> None:
    from ollama_nb.cli.manage import remove_models

    remove_models(models)


@app.command(help="Pack a model into wheels for a Python package index")
def wheel(
    model: Model,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write to (default: this one)")] = "",
    part_size: Annotated[str, typer.Option("--part-size", help="Most bytes of one wheel (default 100MB)")] = "100MB",
    name: Annotated[str, typer.Option("--name", help="Name of the distribution (default: the model's)")] = "",
    version: Annotated[str, typer.Option("--version", help="Version of the distribution (default 1.0)")] = "1.0",
) -> None:
    from ollama_nb.cli.local.shelf import pack_wheel

    pack_wheel(model, output=output, part_size=part_size, name=name, version=version)


@app.command(help="Write models into one tar file")
def export(
    models: Annotated[list[str], typer.Argument(metavar="MODEL [MODEL...]")],
    output: Annotated[str, typer.Option("--output", "-o", help="File to write")] = "",
) -> None:
    from ollama_nb.cli.local.shelf import export_models

    export_models(models, output=output)


@app.command(name="import", help="Take over the models of a tar file")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE")],
    as_: Annotated[str, typer.Option("--as", help="Local name to give to the model")] = "",
) -> None:
    from ollama_nb.cli.local.shelf import import_models

    import_models(file, as_=as_)


@app.command(help="Check every stored model")
def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Set aside what is broken")] = False, json: PrintJson = False
) -> int:
    from ollama_nb.cli.local.care import check_store

    return check_store(repair=repair, json=json)


@app.command(help="Remove what no model uses")
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed")] = False,
    json: PrintJson = False,
) -> None:
    from ollama_nb.cli.local.care import prune as clear

    clear(dry_run=dry_run, json=json)


@app.command(help="Show what takes how much disk space")
def df(json: PrintJson = False) -> None:
    from ollama_nb.cli.local.care import df as show_room

    show_room(json=json)


@app.command(help="Find models of other programs on this disk, and create them here")
def discover(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]")] = None,
    as_: Annotated[str, typer.Option("--as", help="Local name to give to the model")] = "",
    json: PrintJson = False,
) -> None:
    from ollama_nb.cli.local.find import show_discovered

    show_discovered(names or (), as_=as_, json=json)


@app.command(help="Ask registries for newer versions of models")
def outdated(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL...]")] = None,
    insecure: Insecure = False,
    json: PrintJson = False,
) -> None:
    from ollama_nb.cli.local.find import show_outdated

    show_outdated(models or (), insecure=insecure, json=json)


@app.command(help="Manage the API keys of this machine's server")
def keys(
    action: Annotated[str, typer.Argument(metavar="add|list|rm")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]")] = None,
    scope: Annotated[
        str, typer.Option("--scope", help="What a new key may do: infer,read,write,admin (default infer,read)")
    ] = "infer,read",
    days: Annotated[str, typer.Option("--days", help="Days for which a new key is good (default: for ever)")] = "",
    json: PrintJson = False,
) -> None:
    from ollama_nb.cli.local.keys import manage_keys

    manage_keys(action, names or (), scope=scope, days=days, json=json)


@app.command(name="help", help="Help about any command")
def help_(topic: Annotated[list[str] | None, typer.Argument(metavar="[command]")] = None) -> None:
    from ollama_nb.cli import usage

    commands, names = _commands(), topic or []
    name = ALIASES.get(names[0], names[0]) if names else ""
    if name in commands:
        print(usage.command_help(commands[name]))
        return
    text = usage.root_help(ROOT, commands.values())
    if names:
        asked = " ".join(f"`{word}`" for word in names)
        print(f"Unknown help topic [{asked}]\n{text.removeprefix(ROOT.help).lstrip()}", file=sys.stderr)
    else:
        print(text)


def _converse(talk: Talk) -> None:
    # prompt_toolkit takes a while to import: only who talks pays for it.
    from ollama_nb.cli.repl import converse

    converse(talk)


ROOT = cobra.Command(
    "ollama",
    (
        cobra.Flag("--version", "-v", "bool", "Show version information"),
        cobra.Flag("--verbose", kind="bool", help="Show timings for response"),
        cobra.Flag("--nowordwrap", kind="bool", help="Don't wrap words to the next line automatically"),
    ),
    (cobra.Word("words", required=False, many=True),),
    help="Large language model runner",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Never raises, but for what ends a process."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Nobody reads any more: leave as quietly as a process that SIGPIPE ends.
        _drop_output()
        return 128 + 13
    except KeyboardInterrupt:
        return _die_of_interrupt()
    except OllamaError as error:
        return _fail(error.message)
    except OSError as error:
        reason = error.strerror or str(error)
        _drop_output()
        return _fail(f"{error.filename}: {reason}" if error.filename else reason)
    except Exception as error:
        if os.environ.get("OLLAMA_DEBUG"):
            raise
        return _fail(f"{type(error).__name__}: {error} (OLLAMA_DEBUG=1 shows where)")


def dispatch(args: list[str]) -> int:
    """Find the command, read its arguments, do it."""
    commands = _commands()
    typed, rest = cobra.find_command(args, ROOT)
    name = ALIASES.get(typed, typed)
    if not typed:
        return _root(cobra.parse(ROOT, rest))
    if name not in commands:
        from ollama_nb.cli import usage

        raise BadRequest(usage.unknown_command(typed, commands.values()))
    parsed = cobra.parse(commands[name], rest)
    if parsed.wants_help:
        help_([name])
        return 0
    function = commands[name].function
    assert function is not None
    result = function(**parsed.arguments(commands[name]))
    return result if isinstance(result, int) else 0


def _root(parsed: cobra.Parsed) -> int:
    if parsed.flags.get("--version"):
        from ollama_nb.cli.manage import show_version

        show_version()
    else:
        help_(list(parsed.words))
    return 0


def _commands() -> dict[str, cobra.Command]:
    return describe.commands(app, ALIASES, HIDDEN_ALIASES)


def _drop_output() -> None:
    """What cannot be written is let go: else the interpreter tries once more at its end, and fails in its own words."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str) -> int:
    print(f"Error: {text}", file=sys.stderr)
    return 1


def _die_of_interrupt() -> int:
    """End as the signal would have ended the process, so that a shell's loop ends, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    return 130


if __name__ == "__main__":
    sys.exit(main())
