"""The ``ollama`` program: parse the command line, run the verb, report errors.

An error is one line on standard error and exit code 1, without usage text. The modules of a verb are imported when it
runs, so that a verb does not wait for imports that only another verb needs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ollama_nb.cli.parse import ParsedLine, parse_arguments, split_command
from ollama_nb.errors import BadRequest, OllamaError
from ollama_nb.verbs.table import Flag, Verb, Word, find_verb

ROOT = Verb(
    "ollama",
    "Large language model runner",
    (Word("words", "", required=False, many=True),),
    (
        Flag("--version", "-v", "bool", "Show version information"),
        Flag("--verbose", kind="bool", help="Show timings for response"),
        Flag("--nowordwrap", kind="bool", help="Don't wrap words to the next line automatically"),
    ),
)
_SIGPIPE_EXIT = 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default this process's, and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return _SIGPIPE_EXIT
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
        return _fail(f"{type(error).__name__}: {error} (OLLAMA_DEBUG=1 shows the traceback)")


def dispatch(args: list[str]) -> int:
    """Parse a command line and run its verb."""
    if _is_completion(args):
        from ollama_nb.cli.completion import complete  # Typer

        return complete(args)
    name, rest = split_command(args, ROOT)
    if not name:
        return _run_root(parse_arguments(ROOT, rest))
    verb = find_verb(name)
    if verb is None:
        from ollama_nb.cli.help import unknown_command

        raise BadRequest(unknown_command(name))
    parsed = parse_arguments(verb, rest)
    if parsed.wants_help:
        print_help([verb.name])
        return 0
    return run_verb(verb.name, parsed.arguments(verb)) or 0


def run_verb(name: str, arguments: dict[str, Any]) -> int | None:
    """Run a verb with its keyword arguments. Returns its exit code, None for 0."""
    if name == "help":
        print_help(arguments["topic"])
        return None
    return _find_command(name)(**arguments)


def _find_command(name: str) -> Callable[..., int | None]:
    """Import the function of a verb. Only the verb at hand is imported: ``serve``, for one, needs the whole server."""
    match name:
        case "serve":
            from ollama_nb.cli.serve import serve

            return serve
        case "run":
            from ollama_nb.cli.run import run_model

            return run_model
        case "create" | "pull" | "push":
            from ollama_nb.cli import transfer

            return transfer.COMMANDS[name]
        case "wheel" | "export" | "import" | "fsck" | "prune" | "df" | "discover" | "outdated":
            from ollama_nb.cli import store

            return store.COMMANDS[name]
        case "launch":
            from ollama_nb.cli.launch import launch

            return launch
        case "doctor":
            from ollama_nb.cli.doctor import doctor

            return doctor
        case "keys":
            from ollama_nb.cli.keys import manage_keys

            return manage_keys
        case _:
            from ollama_nb.cli import models

            return models.COMMANDS[name]


def print_help(topic: Sequence[str]) -> None:
    """Print the help of a verb, or of the program."""
    from ollama_nb.cli.help import root_help, verb_help  # only help needs its texts

    verb = find_verb(topic[0]) if topic else None
    if verb is not None:
        print(verb_help(verb))
    elif topic:
        asked = " ".join(f"`{word}`" for word in topic)
        text = root_help(ROOT).removeprefix(ROOT.help).lstrip()
        print(f"Unknown help topic [{asked}]\n{text}", file=sys.stderr)
    else:
        print(root_help(ROOT))


def _run_root(parsed: ParsedLine) -> int:
    if parsed.flags.get("--version"):
        from ollama_nb.cli.models import show_version

        show_version()
    else:
        print_help(parsed.words)
    return 0


def _is_completion(args: Sequence[str]) -> bool:
    """Whether a shell asks for completions, or the user for the script that makes it do so."""
    asked = {"_OLLAMA_COMPLETE", "_OLLAMA_NB_COMPLETE"} & os.environ.keys()
    return bool(asked) or args[:1] in (["--install-completion"], ["--show-completion"])


def _drop_output() -> None:
    """Discard unwritten output: the interpreter would try to write it at exit, and print an error of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str) -> int:
    print(f"Error: {text}", file=sys.stderr)
    return 1


def _die_of_interrupt() -> int:
    """End as SIGINT would end the process, so that a shell's loop ends, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    return 130


if __name__ == "__main__":
    sys.exit(main())
