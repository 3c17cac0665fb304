"""From Typer's declarations to what the argument reader and the help need.

Typer itself does not read the command line: it knows neither Ollama's flags nor its errors, and importing what it reads
with takes longer than most commands do.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from ollama_nb.cli.argv import Command, Flag, Word


def commands(app: typer.Typer, aliases: Mapping[str, str], hidden: set[str]) -> dict[str, Command]:
    """Every command of the app by name, in the order of their declaration; ``hidden`` aliases are not told."""
    found = {}
    for info in app.registered_commands:
        assert info.callback is not None
        name = info.name or info.callback.__name__
        told = tuple(alias for alias, target in aliases.items() if target == name and alias not in hidden)
        found[name] = _command(name, info.callback, info.help or "", told)
    return found


def _command(name: str, function: Callable[..., Any], text: str, aliases: tuple[str, ...]) -> Command:
    flags: list[Flag] = []
    words: list[Word] = []
    usage = ""
    defaults = inspect.signature(function).parameters
    for parameter, kind, declared in _parameters(function):
        if isinstance(declared, OptionInfo):
            flags.append(_flag(parameter, kind, declared))
        else:
            required = defaults[parameter].default is inspect.Parameter.empty
            words.append(Word(parameter, required, many=kind is list))
            usage += f" {declared.metavar}"
    return Command(name, tuple(flags), tuple(words), function, usage, text, aliases)


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, type, OptionInfo | ArgumentInfo]]:
    """Each parameter's name, its type without ``| None``, and what Typer was told about it."""
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name == "return":
            continue
        kind, declared = get_args(hint)
        if isinstance(kind, types.UnionType):
            kind = next(member for member in get_args(kind) if member is not types.NoneType)
        yield name, get_origin(kind) or kind, declared


def _flag(parameter: str, kind: type, declared: OptionInfo) -> Flag:
    # Inside Annotated, what Typer's signature calls the default is the first of the names.
    names = [str(name) for name in (declared.default, *(declared.param_decls or ()))]
    long = next(name for name in names if name.startswith("--"))
    short = next((name for name in names if name != long), "")
    return Flag(long, short, {bool: "bool", int: "int"}.get(kind, "string"), declared.help or "", parameter)
